"""Names of the languages of lid.176: its 176 labels, their English names, and the groups of codes.

`code_of` reads a code or an English name, in any case. Names are those of ISO 639 and CLDR; a language has several
where both are in use (`Persian`, `Farsi`).
"""

from typing import Final

from etl.config import nearest

UNDETERMINED: Final = "und"

_NAMES: Final = """
af Afrikaans
als Alemannic, Alsatian, Swiss German
am Amharic
an Aragonese
ar Arabic, Standard Arabic
arz Egyptian Arabic
as Assamese
ast Asturian
av Avaric, Avar
az Azerbaijani
azb South Azerbaijani
ba Bashkir
bar Bavarian
bcl Central Bikol, Bikol
be Belarusian
bg Bulgarian
bh Bihari, Bhojpuri
bn Bangla, Bengali
bo Tibetan
bpy Bishnupriya, Bishnupriya Manipuri
br Breton
bs Bosnian
bxr Russia Buriat, Buryat
ca Catalan, Valencian
cbk Chavacano
ce Chechen
ceb Cebuano
ckb Central Kurdish, Sorani
co Corsican
cs Czech
cv Chuvash
cy Welsh
da Danish
de German, Standard German
diq Dimli, Zazaki
dsb Lower Sorbian
dty Dotyali, Doteli
dv Divehi, Dhivehi, Maldivian
el Greek, Modern Greek
eml Emiliano-Romagnolo, Emilian, Romagnol
en English
eo Esperanto
es Spanish, Castilian
et Estonian
eu Basque
fa Persian, Farsi
fi Finnish
fr French
frr Northern Frisian, North Frisian
fy Western Frisian, West Frisian, Frisian
ga Irish, Irish Gaelic
gd Scottish Gaelic
gl Galician
gn Guarani
gom Goan Konkani, Konkani
gu Gujarati
gv Manx
he Hebrew
hi Hindi
hif Fiji Hindi
hr Croatian
hsb Upper Sorbian
ht Haitian Creole, Haitian
hu Hungarian
hy Armenian
ia Interlingua
id Indonesian
ie Interlingue, Occidental
ilo Iloko, Ilocano
io Ido
is Icelandic
it Italian
ja Japanese
jbo Lojban
jv Javanese
ka Georgian
kk Kazakh
km Khmer, Central Khmer
kn Kannada
ko Korean
krc Karachay-Balkar
ku Kurdish, Northern Kurdish, Kurmanji
kv Komi
kw Cornish
ky Kyrgyz, Kirghiz
la Latin
lb Luxembourgish
lez Lezghian, Lezgian
li Limburgish
lmo Lombard
lo Lao
lrc Northern Luri
lt Lithuanian
lv Latvian
mai Maithili
mg Malagasy
mhr Eastern Mari, Meadow Mari, Mari
min Minangkabau
mk Macedonian
ml Malayalam
mn Mongolian
mr Marathi
mrj Western Mari, Hill Mari
ms Malay
mt Maltese
mwl Mirandese
my Burmese
myv Erzya
mzn Mazanderani
nah Nahuatl
nap Neapolitan
nds Low German, Low Saxon
ne Nepali
new Newari, Newar, Nepal Bhasa
nl Dutch, Flemish
nn Norwegian Nynorsk, Nynorsk
no Norwegian
oc Occitan
or Odia, Oriya
os Ossetic, Ossetian
pa Punjabi, Panjabi
pam Pampanga, Kapampangan
pfl Palatine German
pl Polish
pms Piedmontese
pnb Western Punjabi, Western Panjabi
ps Pashto
pt Portuguese
qu Quechua
rm Romansh
ro Romanian, Moldavian
ru Russian
rue Rusyn
sa Sanskrit
sah Yakut, Sakha
sc Sardinian
scn Sicilian
sco Scots
sd Sindhi
sh Serbo-Croatian
si Sinhala, Sinhalese
sk Slovak
sl Slovenian, Slovene
so Somali
sq Albanian
sr Serbian
su Sundanese
sv Swedish
sw Swahili
ta Tamil
te Telugu
tg Tajik
th Thai
tk Turkmen
tl Filipino, Tagalog
tr Turkish
tt Tatar
tyv Tuvinian, Tuvan
ug Uyghur, Uighur
uk Ukrainian
ur Urdu
uz Uzbek
vec Venetian
vep Veps
vi Vietnamese
vls West Flemish
vo Volapük, Volapuk
wa Walloon
war Waray
wuu Wu Chinese, Shanghainese
xal Kalmyk
xmf Mingrelian
yi Yiddish
yo Yoruba
yue Cantonese, Yue Chinese
zh Chinese, Mandarin, Mandarin Chinese
"""
_BY_LABEL: Final = {line.partition(" ")[0]: line.partition(" ")[2].split(", ") for line in _NAMES.split("\n")[1:-1]}

LABELS: Final = frozenset(_BY_LABEL)
"""The 176 labels of the model."""

GROUPS: Final = {
    **dict.fromkeys(("nb", "nn"), "no"),
    **dict.fromkeys(("bs", "hr", "sr"), "sh"),
    "ms": "id",
    **dict.fromkeys(("wuu", "yue"), "zh"),
}
"""Code -> the code of its group, for languages that the model cannot distinguish."""

_CODES: Final = {
    **{name.casefold(): label for label, names in _BY_LABEL.items() for name in names},
    **dict.fromkeys(("norwegian bokmål", "norwegian bokmal", "bokmål", "bokmal"), "nb"),
    **{code: code for code in (*LABELS, "nb", UNDETERMINED)},
    "undetermined": UNDETERMINED,
}


def code_of(name: str) -> str:
    """The code that a code or an English name means, e.g. `de` for `German`.

    Raises:
        ValueError: the model has no such language; the message suggests the nearest name or code.
    """
    code = _CODES.get(" ".join(name.split()).casefold())
    if code is None:
        # A short text is compared with the codes, since every name is far from it.
        known = [key for key in sorted(_CODES) if (len(key) <= 3) == (len(name) <= 3)]
        raise ValueError(
            f"lid.176 has no language '{name}'; {nearest(name.casefold(), known)}"
            "docs/concepts/language.md lists its codes and the languages without one"
        )
    return code


def name_of(label: str) -> str:
    """The English name of a label, e.g. `German` for `de`."""
    return _BY_LABEL[label][0]


def group_of(code: str) -> str:
    """The code of the group, or the code itself if it is in none."""
    return GROUPS.get(code, code)
