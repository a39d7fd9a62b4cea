"""What a few hundred bytes of YAML may come to is bounded, and an error about a value is short."""

import pytest

from etl import conf
from etl.errors import ConfigError
from etl.run.recipe import Recipe
from etl.yaml_text import MAX_DEPTH, MAX_VALUES

RECIPE = "{{name: n, output: o, stages: [], sources: {{a: {{spec: synth, path: x}}}}, {more}}}"


def aliases(levels: int, width: int = 10) -> str:
    """Lists of the one before, ten times: `width` to the power of `levels` values."""
    lines = [f"a0: &a0 [{', '.join('x' * width)}]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines) + f"\nname: *a{levels - 1}\n"


@pytest.mark.parametrize("levels", [6, 9, 60])
def test_s10_an_alias_bomb_is_one_short_error(tmp_path, levels):
    (tmp_path / "r.yaml").write_text(aliases(levels))
    with pytest.raises(ConfigError, match=rf"more than {MAX_VALUES:,} values") as raised:
        conf.load(Recipe, str(tmp_path / "r.yaml"), "recipes", [])
    assert len(str(raised.value)) < 1000


def test_s10_a_small_alias_bomb_is_a_short_error_too(tmp_path):
    (tmp_path / "r.yaml").write_text(aliases(4))
    with pytest.raises(ConfigError) as raised:
        conf.load(Recipe, str(tmp_path / "r.yaml"), "recipes", [])
    assert len(str(raised.value)) < 3000


@pytest.mark.parametrize(
    "text",
    ["[" * 5000 + "]" * 5000, "{a: " * 5000 + "}" * 5000, "- " * 3000 + "x", "[" * 200 + "]" * 200],
    ids=range(4),
)
def test_s10_yaml_nested_deep_is_an_error(tmp_path, text):
    (tmp_path / "r.yaml").write_text(f"name:\n  {text}" if text[0] == "-" else f"name: {text}")
    overrides = [] if text[0] == "-" else [f"name={text}"]
    for name, sets in ((str(tmp_path / "r.yaml"), []), *(("demo", [one]) for one in overrides)):
        with pytest.raises(ConfigError, match=f"nested deeper than {MAX_DEPTH}"):
            conf.load(Recipe, name, "recipes", sets)


def test_s10_depth_counts_what_aliases_name(tmp_path):
    levels = "\n".join(f"a{n}: &a{n} {'[' * 60}{f'*a{n - 1}' if n else 'x'}{']' * 60}" for n in range(3))
    with pytest.raises(ConfigError, match=f"deeper than {MAX_DEPTH}"):
        conf.parse_yaml(levels, "here")


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: &a {b: *a}", "a: &a {b: [1, {c: *a}]}"])
def test_s10_an_alias_inside_of_what_it_names_is_an_error(text):
    with pytest.raises(ConfigError, match="an alias is inside the value"):
        conf.parse_yaml(text, "here")
    with pytest.raises(ConfigError, match="an alias is inside the value"):
        conf.load(Recipe, "demo", "recipes", [f"name={text.removeprefix('a: ')}"])


def test_aliases_that_are_few_are_taken():
    assert conf.parse_yaml("a: &a [1, 2]\nb: {c: *a, <<: {d: *a}}", "here")["b"] == {"c": [1, 2], "d": [1, 2]}
    assert conf.parse_yaml("[" * MAX_DEPTH + "]" * MAX_DEPTH, "here")


@pytest.mark.parametrize("number", ["1" * 5000, "0x" + "f" * 5000, "-" + "9" * 4301])
def test_a_number_without_end_is_text(number):
    with pytest.raises(ConfigError, match="max_bad_fraction: must be") as raised:
        conf.load(Recipe, "demo", "recipes", [f"max_bad_fraction={number}"])
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("key", ["name", "max_bad_fraction", "stages", "unknown"])
def test_s10_long_values_and_keys_are_shortened(key):
    long = "x" * 1_000_000
    for sets in ([f"{key}=[{long}]"], [f"{long}=1"]):
        with pytest.raises(ConfigError) as raised:
            conf.load(Recipe, "demo", "recipes", sets)
        assert len(str(raised.value)) < 2000
