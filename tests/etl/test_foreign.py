"""Classes from outside the package: read, refused, written, fingerprinted, and gated where they come from a URI."""

import json
import pickle
import shutil
import subprocess
import sys
from typing import Annotated, Literal

import fsspec
import pyarrow as pa
import pytest
from pydantic import Field

from etl import conf
from etl.config import Config
from etl.errors import ConfigError
from etl.foreign import Foreign, Kinded, allowed, code_digest, load
from etl.pipeline import Pipeline, open_steps
from etl.step import Step
from tests.acme import LONG_ANSWERS, importable, write_package, zipped
from tests.etl.rows import asked, conversations, verdicts

WRONG = """
from etl.step import Step

class Idle(Step):
    pass

def shout(step):
    return step
"""


@pytest.fixture
def acme(tmp_path):
    folder = write_package(tmp_path / "outside", wrong=WRONG)
    with importable(folder, "acme_filters"):
        yield folder


def pipeline(*steps, cuts=()):
    return conf.check(Pipeline, {"steps": list(steps), "cuts": list(cuts)}, "toy.yaml")


def mistake(*steps, cuts=()):
    with pytest.raises(ConfigError) as caught:
        pipeline(*steps, cuts=cuts)
    (_, line) = str(caught.value).splitlines()
    return line.strip()


# --- reading and writing ---


def test_a_step_from_outside_runs_as_any_other(acme):
    read = pipeline({"kind": LONG_ANSWERS, "max_chars": 3}, {"kind": "answer"})
    assert [step.kind for step in read.steps] == [LONG_ANSWERS, "answer"]
    assert read.added.names == ["answer_chars"]
    rows = conversations([asked("q", "abc"), asked("q", "abcd"), asked("q", "")])
    done = open_steps(read.steps)(rows)
    assert done.column("answer_chars").to_pylist() == [3, 4, 0]
    assert verdicts(done) == [None, ("LongAnswers", "too_long", "4"), ("answer", "empty_answer", None)]


def test_what_is_written_is_read_again(acme):
    read = pipeline({"kind": LONG_ANSWERS, "max_chars": 3}, {"kind": "language"})
    (step, _) = read.steps
    assert read.model_dump(exclude_none=True)["steps"][0] == {"kind": LONG_ANSWERS, "max_chars": 3}
    assert read.fingerprinted()["steps"] == [{"kind": LONG_ANSWERS, "max_chars": 3}, {}]
    assert conf.check(Pipeline, json.loads(read.model_dump_json()), "again") == read
    assert pickle.loads(pickle.dumps(read)) == read
    assert Pipeline(steps=read.steps) == read
    assert type(step)(max_chars=3) == step


class Cat(Kinded):
    kind: Literal["cat"] = "cat"
    lives: int = Field(default=9, lt=10)


class Dog(Kinded):
    kind: Literal["dog"] = "dog"


AnyPet = Annotated[Cat | Dog, Field(discriminator="kind"), Foreign(Kinded)]
COW = "acme_filters.pets:Cow"
PETS = """
from pydantic import Field
from etl.foreign import Kinded

class Cow(Kinded):
    milk: float = Field(default=1.0, gt=0)
"""


class Zoo(Config):
    pets: tuple[AnyPet, ...] = ()
    first: AnyPet = Cat()


@pytest.mark.parametrize(
    ("tree", "line"),
    [
        ({"pets": [{"kind": COW, "milk": 0}]}, "pets.0.milk: must be above 0.0 (got 0)"),
        ({"first": {"kind": COW, "milk": 0}}, "first.milk: must be above 0.0 (got 0)"),
        ({"first": {"kind": COW, "mlk": 1}}, "first: unknown key 'mlk'; did you mean 'milk'? valid keys: kind, milk"),
        ({"pets": [{"kind": "cat", "lives": 10}]}, "pets.0.lives: must be below 10 (got 10)"),
        (
            {"pets": [{"kind": COW}, {"kind": "cta"}]},
            "pets.1.kind: there is no pet 'cta'; did you mean 'cat'? known: cat, dog",
        ),
        ({"pets": [{"kind": COW}, {}]}, "pets.1.kind: is missing; known: cat, dog"),
        ({"first": {}}, "first.kind: is missing; known: cat, dog"),
        ({"first": {"kind": 3}}, "first.kind: there is no kind '3'; did you mean 'dog'? known: cat, dog"),
        ({"first": "a:b"}, "first: must be a mapping of keys (got 'a:b')"),
    ],
)  # fmt: skip
def test_mistakes_below_such_a_union_keep_their_words(acme, tree, line):
    (acme / "acme_filters" / "pets.py").write_text(PETS)
    with pytest.raises(ConfigError) as caught:
        conf.check(Zoo, tree, "toy.yaml")
    assert str(caught.value).splitlines() == ["toy.yaml:", f"  {line}"]


# --- refused ---


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("acme_filters:", "'acme_filters:' is not of the form package.module:Class, e.g. "),
        (".acme:A", "'.acme:A' is not of the form package.module:Class, e.g. "),
        (
            "acme_filtres:A",
            "module acme_filtres cannot be imported (ModuleNotFoundError: No module named 'acme_filtres'); install it,",
        ),
        (
            "acme_filters.answers:LongAnswer",
            "module acme_filters.answers has no class 'LongAnswer'; did you mean 'LongAnswers'? there: LongAnswers",
        ),
        ("acme_filters.objectives:Long", "module acme_filters.objectives has no class 'Long'; it has no Step"),
        ("acme_filters.wrong:shout", "acme_filters.wrong:shout is a function, not a Step; derive it from etl."),
        ("acme_filters.answers:pa", "acme_filters.answers:pa is a module, not a Step; "),
        ("etl.mixture.cuts:ShareCut", "etl.mixture.cuts:ShareCut is a Cut, not a Step; derive it from etl.step.Step"),
        ("etl.run.recipe:Recipe", "etl.run.recipe:Recipe is a class of another kind, not a Step; "),
        ("acme_filters.wrong:Idle", "acme_filters.wrong:Idle does not define open, which a Step needs; add that"),
        ("etl.filters.answers:AnswerStep", "the class etl.filters.answers:AnswerStep calls its kind 'answer'; write "),
    ],
)  # fmt: skip
def test_a_class_that_does_not_belong_there_is_told(acme, kind, said):
    assert mistake({"kind": "answer"}, {"kind": kind}).startswith(f"steps.1.kind: {said}")


def test_a_module_that_fails_is_told_with_its_place(acme):
    (acme / "acme_filters" / "broken.py").write_text("a = 1\nb = a / 0\n")
    line = mistake({"kind": "acme_filters.broken:A"})
    assert line.startswith("steps.0.kind: module acme_filters.broken cannot be imported (ZeroDivisionError: ")
    assert "broken.py:2)" in line


def test_a_class_that_keeps_the_kind_of_another_is_told(acme):
    text = "from etl.filters.answers import AnswerStep\n\nclass Mine(AnswerStep):\n    ...\n"
    (acme / "acme_filters" / "mine.py").write_text(text)
    assert mistake({"kind": "acme_filters.mine:Mine"}).endswith("add the line `kind: str` to the class")
    (acme / "acme_filters" / "yours.py").write_text(text.replace("...", "kind: str").replace("Mine", "Yours"))
    (step,) = pipeline({"kind": "acme_filters.yours:Yours", "failure_phrases": ["no"]}).steps
    assert (step.kind, step.failure_phrases) == ("acme_filters.yours:Yours", ("no",))


def test_a_cut_has_to_define_its_parts(acme):
    (acme / "acme_filters" / "halves.py").write_text(
        "from etl.mixture.cuts import RankedCut\n\nclass Half(RankedCut):\n    kind: str\n"
    )
    line = mistake({"kind": "answer"}, cuts=[{"kind": "acme_filters.halves:Half", "name": "half"}])
    assert line.startswith(
        "cuts.0.kind: acme_filters.halves:Half does not define group, numeric, quotas, reads, reason, score,"
    )


# --- the digest of the sources ---


def digest_of_a_fresh_import(place):
    with importable(place, "acme_filters"):
        return code_digest(load(LONG_ANSWERS, Step))


def test_the_digest_is_of_names_and_bytes_alone(tmp_path):
    folder = write_package(tmp_path / "a")
    expected = digest_of_a_fresh_import(folder)
    assert (folder / "acme_filters" / "__pycache__").exists() or sys.dont_write_bytecode
    assert digest_of_a_fresh_import(folder) == expected
    assert digest_of_a_fresh_import(shutil.copytree(folder, tmp_path / "b" / "elsewhere")) == expected
    assert digest_of_a_fresh_import(zipped(folder, tmp_path / "acme.zip")) == expected
    assert digest_of_a_fresh_import(write_package(tmp_path / "c", cuts="\n")) != expected
    (folder / "acme_filters" / "words.txt").write_text("no source")
    assert digest_of_a_fresh_import(folder) == expected
    shutil.copy(folder / "acme_filters" / "cuts.py", folder / "acme_filters" / "copied.py")
    assert digest_of_a_fresh_import(folder) != expected


def test_the_digest_of_a_lone_module_is_that_of_its_file(tmp_path):
    def digest():
        with importable(tmp_path, "acme_alone", "acme_beside"):
            return load("acme_alone:Mine", Step).__name__, code_digest(load("acme_alone:Mine", Step))

    text = "from etl.step import Step\n\nclass Mine(Step):\n    def open(self):\n        return None\n"
    (tmp_path / "acme_alone.py").write_text(text)
    first = digest()
    (tmp_path / "acme_beside.py").write_text("")
    assert digest() == first
    archive = zipped(tmp_path, tmp_path.parent / "alone.zip")
    with importable(archive, "acme_alone"):
        assert code_digest(load("acme_alone:Mine", Step)) == first[1]
    (tmp_path / "acme_alone.py").write_text(text + "\n")
    assert digest() != first


def test_a_fingerprint_has_version_and_source(tmp_path):
    def identity(place):
        with importable(place, "acme_filters"):
            read = pipeline({"kind": LONG_ANSWERS}, {"kind": "answer"})
            return *read.identity(), read.digest()

    (step, known, digest) = identity(write_package(tmp_path / "a"))
    assert (step["kind"], step["version"], len(step["code"])) == (LONG_ANSWERS, 1, 64)
    assert "code" not in known
    (other, _, other_digest) = identity(write_package(tmp_path / "b", cuts="# another way\n"))
    assert other.pop("code") != step.pop("code")
    assert other == step
    assert digest != other_digest


def test_a_package_without_init_is_refused(tmp_path):
    folder = write_package(tmp_path, "acme_bare")
    (folder / "acme_bare" / "__init__.py").unlink()
    with importable(folder, "acme_bare"):
        line = mistake({"kind": "acme_bare.answers:LongAnswers"})
    assert line.startswith("steps.0.kind: acme_bare has no __init__.py, so it is unknown which files belong to ")


@pytest.mark.parametrize("how", ["compiled", "program"])
def test_a_class_without_source_is_refused(tmp_path, how):
    program = """
from etl import conf
from etl.pipeline import Pipeline
from etl.step import Step
class Mine(Step):
    def open(self):
        return None
import sys
try:
    conf.check(Pipeline, {"steps": [{"kind": sys.argv[1]}]}, "toy")
except conf.ConfigError as error:
    print(error)
"""
    kind = "__main__:Mine"
    if how == "compiled":
        import py_compile

        write_package(tmp_path)
        for path in (tmp_path / "acme_filters").glob("*.py"):
            py_compile.compile(str(path), cfile=str(path.with_suffix(".pyc")))
            path.unlink()
        kind = LONG_ANSWERS
    environment = {"PYTHONPATH": f"{tmp_path}:{':'.join(sys.path)}"}
    done = subprocess.run([sys.executable, "-c", program, kind], capture_output=True, text=True, env=environment)
    assert "steps.0.kind: the source of " in done.stdout, done.stderr
    assert "cannot be read" in done.stdout


# --- the gate ---


@pytest.fixture
def far(acme):
    """A pipeline at a URI that names code."""
    tree = {"steps": [{"kind": LONG_ANSWERS}, {"kind": "answer"}]}
    fsspec.filesystem("memory").pipe_file("/foreign/toy.yaml", json.dumps(tree).encode())
    return "memory://foreign/toy.yaml"


def test_a_configuration_from_a_uri_is_refused_before_its_code_is_imported(far):
    with pytest.raises(ConfigError, match=rf"steps\.0\.kind: {LONG_ANSWERS} is code from outside .*add --allow-code"):
        conf.load(Pipeline, far, "recipes", [])
    assert "acme_filters" not in sys.modules
    assert conf.load(Pipeline, far, "recipes", [], allow_code=True).steps[0].kind == LONG_ANSWERS


def test_a_second_mistake_does_not_import_the_code_either(far):
    with pytest.raises(ConfigError, match=r"steps\.1\.kind: is missing; known: answer") as caught:
        conf.load(Pipeline, far, "recipes", ["steps.1={}"])
    assert "--allow-code" in str(caught.value)
    assert "acme_filters" not in sys.modules


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_path_needs_no_flag_and_a_file_url_is_a_uri(acme, tmp_path, scheme):
    path = tmp_path / "toy.yaml"
    path.write_text(json.dumps({"steps": [{"kind": LONG_ANSWERS}]}))
    if scheme:
        with pytest.raises(ConfigError, match="--allow-code"):
            conf.load(Pipeline, f"{scheme}{path}", "recipes", [])
    else:
        assert conf.load(Pipeline, str(path), "recipes", []).steps[0].kind == LONG_ANSWERS
        (tmp_path / "kind").write_text(LONG_ANSWERS)
        assert (
            conf.load(Pipeline, str(path), "recipes", [f"steps.0.kind=@{tmp_path}/kind"]).steps[0].kind == LONG_ANSWERS
        )


def test_a_value_from_a_uri_closes_the_gate(acme, tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text(json.dumps({"steps": [{"kind": "answer"}]}))
    fsspec.filesystem("memory").pipe_file("/foreign/kind", LONG_ANSWERS.encode())
    override = "steps.0.kind=@memory://foreign/kind"
    with pytest.raises(ConfigError, match="--allow-code"):
        conf.load(Pipeline, str(path), "recipes", [override])
    assert conf.load(Pipeline, str(path), "recipes", [override], allow_code=True).steps[0].kind == LONG_ANSWERS


def test_the_descriptions_of_sources_never_name_code(acme, tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text(json.dumps({"steps": [{"kind": LONG_ANSWERS}]}))
    with pytest.raises(ConfigError, match="--allow-code"):
        conf.read(Pipeline, str(path), "recipes")


def test_python_that_calls_without_a_context_may():
    given = (None, {}, {"allow_code": True}, {"allow_code": False})
    assert [allowed(context) for context in given] == [True, True, True, False]


def test_a_python_caller_needs_no_flag(acme):
    assert Pipeline.model_validate({"steps": [{"kind": LONG_ANSWERS}]}).steps[0].adds == pa.schema(
        {"answer_chars": pa.int32()}
    )
