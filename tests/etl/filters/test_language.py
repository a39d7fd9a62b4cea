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
from etl.filters.language import MODEL_SHA256, MODEL_URI, LanguageStep
from etl.filters.language_names import LABELS, UNDETERMINED
from etl.filters.language_scores import ALL_LABELS, SCORES, min_score_of
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


def test_the_first_characters_alone_are_judged_where_their_number_is_given():
    padded = "é " * 5
    rows = [asked(padded, "The cat sat on the mat."), asked(padded, "Der Hund bellt die Katze an.")]
    one, other = run(rows, characters=10).column("language_score").to_pylist()
    assert one == other
    one, other = run(rows).column("language_score").to_pylist()
    assert one != other


def test_a_long_text_is_judged_in_whole():
    row = asked("Banana pizza", GERMAN[0]["content"] * 100)
    assert run([row], characters=12).column("detected_language").to_pylist() != ["de"]
    assert run([row]).column("detected_language").to_pylist() == ["de"]


@pytest.mark.parametrize("characters", [0, -1])
def test_a_number_of_characters_below_one_is_refused(characters):
    with pytest.raises(ValidationError, match="characters"):
        LanguageStep(characters=characters)


@pytest.mark.parametrize("text", ["", " \n ", "12 + 30 = 42", "!?…", "\x00\n"])
def test_text_without_letters_is_undetermined(text):
    batch = run([asked(text, "")], keep=["en"])
    assert batch.column("detected_language").to_pylist() == ["und"]
    assert verdicts(batch) == [("language", "language_not_kept", "und 0")]
    for kept in (["und"], ["en", "Undetermined"]):
        assert verdicts(run([asked(text, "")], keep=kept)) == [None]


@pytest.mark.parametrize("text", ["ẍ", "xq"])
def test_the_answer_to_nothing_is_no_answer(model, text):
    assert model.predict(text) == model.predict("")
    batch = run([asked(text, "")])
    assert batch.column("detected_language").to_pylist() == ["und"]
    assert batch.column("language_score").to_pylist() == [0]


def test_languages_of_one_group_are_kept_together():
    cantonese = asked("佢哋話我知嗰個人唔喺度，你哋聽日再嚟搵佢啦。", "")
    label = run([cantonese]).column("detected_language").to_pylist()
    assert label == ["yue"]
    for code in ("zh", "yue", "wuu", "Chinese"):
        assert verdicts(run([cantonese], keep=[code])) == [None]


def test_without_a_smallest_score_each_label_has_its_own():
    rows = [asked("Banana pizza", ""), asked("ΑΒΓ", ""), ENGLISH, GERMAN]
    labels, scores = (run(rows).column(name).to_pylist() for name in ("detected_language", "language_score"))
    assert labels[1:] == ["el", "en", "de"]
    expected = [
        None if round(score, 4) >= min_score_of(label) else ("language", "language_score_below_min")
        for label, score in zip(labels, scores, strict=True)
    ]
    assert expected[0] is not None
    got = verdicts(run(rows, keep=sorted(LABELS)))
    assert [verdict and verdict[:2] for verdict in got] == expected


def test_a_smallest_score_that_is_written_holds_and_without_a_keep_list_there_is_none():
    row = asked("Banana pizza", "")
    (label,), (score,) = (run([row]).column(name).to_pylist() for name in ("detected_language", "language_score"))
    assert score < min_score_of(label)
    assert verdicts(run([row])) == [None]
    assert verdicts(run([row], keep=[label], min_score=0.0)) == [None]
    assert verdicts(run([row], min_score=1.0)) == [("language", "language_score_below_min", f"{label} {score:.4f}")]


def test_every_label_has_a_smallest_score():
    assert set(SCORES) <= LABELS | {ALL_LABELS}
    assert all(0 <= min_score_of(label) <= 1 for label in LABELS)
    assert SCORES["en"] == 0.65
    assert SCORES["yue"] == SCORES["zh"]
    assert min_score_of("xmf") == SCORES[ALL_LABELS]
    assert min_score_of(UNDETERMINED) == 0


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


@pytest.mark.parametrize(
    ("keep", "near"),
    [(["eng"], "'en'"), (["zu"], "'zh'"), (["Germann"], "'german'"), (["Zulu"], "no language"), ([], "null")],
)
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
    # A process reads its model once.
    language.classifier.cache_clear()
    found = hashlib.sha256(b"another model").hexdigest()
    message = rf"{folder}/lid\.ftz has sha256 {found}, expected {MODEL_SHA256}; .* reinstall 'other_langdetect'"
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
def test_end_marks_hide_nothing_in_the_field_case(shared_data):
    lines = (shared_data / "field_cases" / "eos" / "a.jsonl").read_text(encoding="utf-8").splitlines()
    batch = run([asked(json.loads(line)["text"], "") for line in lines], keep=["de"], min_score=0.3)
    assert batch.column("detected_language").to_pylist() == ["de"] * 6
    assert verdicts(batch) == [None] * 6


@pytest.mark.shared
def test_scripts_without_a_label_are_undetermined(shared_data):
    with gzip.open(shared_data / "langid_udhr" / "udhr.jsonl.gz", "rt", encoding="utf-8") as file:
        documents = [json.loads(line) for line in file]
    codes = ["chr_cased", "chr_uppercase", "fuf_adlm", "tzm_tfng", "iii", "ike", "csw", "vai", "ccp", "blt", "kkh_lana",
             "khk_mong", "jav_java", "san_gran", "tgl_tglg", "aii"]  # fmt: skip
    rows = [asked(part, "") for document in documents if document["code"] in codes for part in document["paragraphs"]]
    assert len(rows) > 500
    labels = run(rows).column("detected_language").to_pylist()
    assert labels.count("und") >= 0.99 * len(rows)


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
