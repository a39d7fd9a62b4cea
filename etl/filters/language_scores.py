"""The score from which a label of lid.176 is right in nine cases of ten: the default `min_score` of `language`.

Measured by `python -m tests.benchmarks.measure_language`, which makes this table and describes the method. Precision
and recall of each label are in docs/concepts/language.md. A label that never reaches 0.90 has the score of its whole
group. If the group does not reach it either, or has no texts, the label has the score of all labels. `und` has no
minimum, as it means that the model does not know the language.
"""

from collections.abc import Mapping
from typing import Final

from etl.filters.language_names import UNDETERMINED

PRECISION: Final = 0.90
ALL_LABELS: Final = "*"

_TABLE: Final = """
* 0.75
af 0.00
als 0.00
ar 0.95
ast 0.15
be 0.00
bg 0.25
bn 0.00
br 0.40
bs 0.20
ca 0.60
ceb 0.40
cs 0.60
cv 0.00
cy 0.45
da 0.75
de 0.55
dv 0.00
el 0.00
en 0.65
eo 0.80
es 0.75
et 0.25
eu 0.20
fa 0.00
fi 0.80
fr 0.90
fy 0.00
ga 0.45
gd 0.00
gl 0.00
gn 0.20
gu 0.00
he 0.00
hr 0.30
hsb 0.00
ht 0.20
hu 0.50
hy 0.00
ia 0.15
id 0.35
ilo 0.15
it 0.99
ja 0.00
jv 0.20
ka 0.00
kk 0.00
km 0.00
kn 0.00
ko 0.00
ku 0.65
ky 0.00
la 0.15
lb 0.00
lo 0.00
lt 0.10
lv 0.00
mg 0.00
mk 0.25
ml 0.00
mn 0.00
mr 0.00
ms 0.40
mt 0.00
mwl 0.00
my 0.00
nds 0.25
ne 0.00
nl 0.70
nn 0.00
no 0.65
oc 0.55
pa 0.00
pl 0.40
pnb 0.00
ps 0.00
pt 0.85
qu 0.25
rm 0.35
ro 0.30
ru 0.90
sa 0.00
sah 0.00
sh 0.00
si 0.00
sk 0.00
sl 0.25
so 0.00
sq 0.25
sr 0.00
su 0.30
sv 0.00
ta 0.00
te 0.00
tg 0.40
th 0.00
tk 0.00
tl 0.45
tr 0.85
tt 0.85
ug 0.00
uk 0.00
ur 0.10
uz 0.35
vec 0.00
vi 0.70
wuu 0.00
yi 0.00
yo 0.00
yue 0.00
zh 0.00
"""
SCORES: Final = {label: float(score) for label, score in (line.split() for line in _TABLE.split("\n")[1:-1])}


def min_score_of(label: str, scores: Mapping[str, float] = SCORES) -> float:
    """The smallest score of a row with this label, if `keep` is given and `min_score` is not."""
    if label == UNDETERMINED:
        return 0.0
    return scores.get(label, scores[ALL_LABELS])
