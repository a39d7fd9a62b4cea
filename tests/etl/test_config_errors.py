"""Each kind of mistake in a configuration, as the line that a user reads."""

from typing import Annotated, Literal

import pytest
from pydantic import Field

from etl import conf
from etl.config import Config
from etl.errors import ConfigError
from etl.run.recipe import Recipe
from etl.sources.spec import Description


class Cat(Config):
    kind: Literal["cat"] = "cat"
    lives: int = Field(9, ge=1, lt=10)
    cat: str = "tom"


class Dog(Config):
    kind: Literal["dog"] = "dog"
    bark: float = Field(gt=0)


class Zoo(Config):
    pets: tuple[Annotated[Cat | Dog, Field(discriminator="kind")], ...] = Field((), min_length=1)
    first: Annotated[Cat | Dog, Field(discriminator="kind")] = Cat()
    food: Literal["hay", "meat"] = "hay"
    paths: str | tuple[str, ...] = ""
    open: bool = True
    names: dict[str, int] = {}
    options: dict[str, int] = {}


def mistakes(tree, model=Zoo):
    with pytest.raises(ConfigError) as caught:
        conf.check(model, tree, "toy.yaml")
    head, *lines = str(caught.value).splitlines()
    assert head == "toy.yaml:"
    return [line.strip() for line in lines]


@pytest.mark.parametrize(
    ("tree", "lines"),
    [
        ({"pets": [{"kind": "cow"}]}, ["pets.0.kind: there is no pet 'cow'; did you mean 'dog'? known: cat, dog"]),
        ({"pets": [{}]}, ["pets.0.kind: is missing; known: cat, dog"]),
        ({"first": {"lives": 1}}, ["first.kind: is missing; known: cat, dog"]),
        ({"first": {"kind": "cta"}}, ["first.kind: there is no kind 'cta'; did you mean 'cat'? known: cat, dog"]),
        ({"pets": ["cat"]}, ["pets.0: must be a mapping of keys (got 'cat')"]),
        ({"pets": [{"kind": "cat", "lives": 10}]}, ["pets.0.lives: must be below 10 (got 10)"]),
        ({"pets": [{"kind": "cat", "cat": []}]}, ["pets.0.cat: must be text (got [])"]),
        ({"pets": [{"kind": "dog"}]}, ["pets.0.bark: is missing; add it to the file, or --set pets.0.bark=VALUE"]),
        ({"pets": []}, ["pets: needs at least 1, has 0 (got [])"]),
        ({"pets": 3}, ["pets: must be a list (got 3)"]),
        ({"food": "mead"}, ["food: 'mead' is not known; did you mean 'meat'? known: hay, meat"]),
        ({"paths": {"a": 1}}, ["paths: must be text or a list (got {'a': 1})"]),
        ({"paths": ["a", {}]}, ["paths.1: must be text (got {})"]),
        ({"open": "perhaps"}, ["open: must be true or false (got 'perhaps')"]),
        ({"names": {"a": "x"}}, ["names.a: must be a whole number (got 'x')"]),
        ({"names": []}, ["names: must be a mapping of keys (got [])"]),
        ({"options": {"secret": "hunter2"}}, ["options.secret: must be a whole number"]),
        (
            {"pets": [{"kind": "cow"}, {"kind": "dog", "bark": 0}], "open": 7},
            [
                "pets.0.kind: there is no pet 'cow'; did you mean 'dog'? known: cat, dog",
                "pets.1.bark: must be above 0.0 (got 0)",
                "open: must be true or false (got 7)",
            ],
        ),
    ],
)
def test_a_mistake_is_one_line(tree, lines):
    assert mistakes(tree) == lines


def test_no_word_of_pydantic_is_left_in_the_mistakes_of_a_recipe():
    base = {"name": "n", "output": "o", "sources": {"x": {"spec": "synth", "path": "p"}}, "stages": ["filter"]}
    trees = [
        base | {"filter": {"steps": [{"kind": "gopher"}]}},
        base | {"filter": {"steps": []}},
        base | {"filter": {"steps": [{"kind": "language", "min_score": 2, "keep": "en"}]}},
        base | {"dedup": {"near": {"unit": "wrod", "threshold": "x"}, "exact": 3}},
        base | {"run": {"split_bytes": 1.5, "bucket_bytes": 1}},
        base | {"harmony": {"reasoning_effort": "huge"}, "ctx": []},
        base | {"filter": {"steps": [{"kind": "answer"}], "cuts": [{"kind": "share", "name": "a b"}]}},
    ]
    said = "\n".join(line for tree in trees for line in mistakes(tree, Recipe))
    for word in ("Input", "validation", "discriminator", "valid ", "String", "Tuple", "Field", "pydantic", "type="):
        assert word not in said, said


@pytest.mark.parametrize(
    ("tree", "line"),
    [
        (
            {"example_id": "a"},
            "shape: is missing; known: columns, messages, pairs, transcript, preference, verifiable, prompts, text",
        ),
        (
            {"shape": "text", "example_id": "i", "text": "t", "skill_bucket": {"default": "coding"}},
            (
                "skill_bucket.default: 'coding' is no skill bucket; use reasoning (B1, general reasoning), "
                "math (B2, math), code (B3, code), chat (B4, helpful dialogue), knowledge (B5, world knowledge)"
            ),
        ),
    ],
)
def test_mistakes_in_the_description_of_a_source(tree, line):
    assert mistakes(tree, Description) == [line]
