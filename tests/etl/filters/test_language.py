"""Labels, scores and the keep-list, against the model asked one text at a time."""

import gzip
import hashlib
import json
import pickle

import fasttext
import pyarrow as pa
import pytest
from pydantic import ValidationError

from etl.artefacts import fetch
from etl.errors import ConfigError
from etl.filters import language
from etl.filters.language import LABELS, MODEL_SHA256, MODEL_URI, NUM_CHARACTERS, LanguageStep
from tests.etl.rows import asked, conversations, say, verdicts

ENGLISH = asked("What does the lighthouse keeper do at night?", "He keeps the lamp burning for the ships.")
GERMAN = asked("Wie geht es dem alten Leuchtturmwärter heute?", "Danke, es geht ihm sehr gut.")
FRENCH = asked("Où se trouve la bibliothèque de la ville ?", "Elle se trouve derrière la mairie.")


@pytest.fixture(scope="module")
def model():
    return fasttext.load_model(str(fetch(MODEL_URI, None)))


def run(rows, **fields):
    return LanguageStep(**fields).open()(conversations(rows))


def test_columns_hold_what_the_model_says(model):
    batch = run([ENGLISH, GERMAN, FRENCH])
    assert batch.schema.field("language_score").type == pa.float32()
    assert batch.column("detected_language").to_pylist() == ["en", "de", "fr"]
    text = GERMAN[0]["content"] + " " + GERMAN[1]["content"]
    (label,), (score,) = model.predict(text)
    assert label == "__label__de"
    assert batch.column("language_score")[1].as_py() == pytest.approx(score, abs=6e-5)
    assert verdicts(batch) == [None, None, None]


def test_reasoning_and_system_text_are_not_judged():
    german = " ".join(message["content"] for message in GERMAN)
    row = [say("system", german), ENGLISH[0], say("assistant", german, "analysis"), ENGLISH[1]]
    alone, dressed = run([ENGLISH, row]).column("language_score").to_pylist()
    assert alone == dressed


def test_only_the_first_characters_are_judged():
    padded = "é " * (NUM_CHARACTERS // 2)
    one, other = run([asked(padded, "The cat sat."), asked(padded, "Der Hund bellt.")]).column("language_score")
    assert one.as_py() == other.as_py()


@pytest.mark.parametrize("text", ["", " \n ", "12 + 30 = 42", "!?…", "\x00\n"])
def test_text_without_letters_is_undetermined(text):
    batch = run([asked(text, "")], keep=["en"])
    assert batch.column("detected_language").to_pylist() == ["und"]
    assert verdicts(batch) == [("language", "language_not_kept", "und 0")]
    assert verdicts(run([asked(text, "")], keep=["und"])) == [None]


def test_keep_list_and_smallest_score():
    batch = run([ENGLISH, GERMAN, FRENCH], keep=["en", "fr"], min_score=0.0)
    score = batch.column("language_score").to_pylist()
    assert verdicts(batch) == [None, ("language", "language_not_kept", f"de {round(score[1], 4)}"), None]
    strict = verdicts(run([ENGLISH], min_score=1.0))
    assert strict == [("language", "language_score_below_min", f"en {round(score[0], 4)}")]


def test_a_code_keeps_the_languages_that_the_model_confuses_with_it():
    croatian = asked("Gdje se nalazi gradska knjižnica?", "Nalazi se iza gradske vijećnice, nedaleko od rijeke.")
    for code in ("hr", "sr", "bs", "sh"):
        assert verdicts(run([croatian], keep=[code])) == [None]
    assert verdicts(run([croatian], keep=["sl"]))[0] is not None


def test_a_dropped_row_has_nulls():
    batch = LanguageStep().open()(conversations([ENGLISH, GERMAN], dropped=[0]))
    assert batch.column("detected_language").to_pylist() == [None, "de"]
    assert batch.column("language_score").null_count == 1


def test_an_empty_batch():
    batch = run([])
    assert batch.schema.names == ["id", "messages", "verdict", "detected_language", "language_score"]


@pytest.mark.parametrize(("keep", "near"), [(["eng"], "'en'"), (["zu"], "'zh'"), ([], "null")])
def test_a_keep_list_that_could_keep_nothing_is_refused(keep, near):
    with pytest.raises(ValidationError, match=near):
        LanguageStep(keep=keep)


def test_the_model_is_named_by_its_digest():
    digest = hashlib.sha256(fetch(MODEL_URI, None).read_bytes()).hexdigest()
    assert LanguageStep().artefacts() == {"lid.176": digest}


def test_another_model_in_the_package_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "other_langdetect"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "lid.ftz").write_bytes(b"another model")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(language, "MODEL_URI", "package:other_langdetect/lid.ftz")
    found = hashlib.sha256(b"another model").hexdigest()
    message = rf"{folder}/lid\.ftz has sha256 {found}, expected {MODEL_SHA256}; .* install 'other_langdetect' again"
    for use in (LanguageStep().artefacts, LanguageStep().open):
        with pytest.raises(ConfigError, match=message):
            use()


def test_the_step_pickles():
    step = LanguageStep(keep=("en",))
    assert pickle.loads(pickle.dumps(step)) == step


def test_every_label_of_the_model_is_known(model):
    labels, _ = model.predict("Hello, 你好, привет", k=176)
    assert {label.removeprefix("__label__") for label in labels} <= LABELS
    assert len(LABELS) == 176


@pytest.mark.shared
def test_declarations_of_human_rights_are_recognised(shared_data):
    with gzip.open(shared_data / "langid_udhr" / "udhr.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    codes = ["en", "de", "it", "ru", "ja", "ko", "ar", "hi", "th", "tr", "pl", "nl"]
    tagged = [(row["bcp47"].split("-")[0], "\n".join(row["paragraphs"])) for row in rows]
    texts = [(code, text) for code, text in tagged if code in codes]
    assert {code for code, _ in texts} == set(codes)
    got = run([asked(text, "") for _, text in texts]).column("detected_language").to_pylist()
    assert got == [code for code, _ in texts]
