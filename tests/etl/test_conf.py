"""Configurations from YAML: where they are found, what `--set` does, and the error for each mistake."""

from typing import Any

import pytest

from etl import conf
from etl.config import Config
from etl.errors import ConfigError


class Inner(Config):
    rate: float = 0.5
    day: str = "never"


class Toy(Config):
    name: str
    size: int = 3
    inner: Inner = Inner()
    several: tuple[Inner, ...] = ()
    words: tuple[str, ...] = ()
    flag: bool = False
    maybe: str | None = None
    one_or_more: str | tuple[str, ...] = ()
    which: dict[str, str] = {}
    options: Any = None


@pytest.fixture
def toy(tmp_path):
    """Reads a YAML text as Toy, with overrides."""

    def read(text: str, *overrides: str) -> Toy:
        (tmp_path / "toy.yaml").write_text(text, encoding="utf-8")
        return conf.load(Toy, str(tmp_path / "toy.yaml"), "recipes", list(overrides))

    return read


def test_a_file_becomes_a_model(toy):
    read = toy("name: a\ninner: {rate: 0.25}\nseveral:\n  - rate: 1\n  - {}\n")
    assert read == Toy(name="a", inner=Inner(rate=0.25), several=(Inner(rate=1.0), Inner()))


def test_overrides_are_yaml(toy):
    read = toy("name: a", "size=7", "inner.rate=1e-3", "words=[x, 'y z']", "inner.day=null day")
    assert read == Toy(name="a", size=7, inner=Inner(rate=0.001, day="null day"), words=("x", "y z"))


def test_overrides_reach_into_lists(toy):
    read = toy("name: a\nseveral: [{rate: 1}, {rate: 2}]\nwords: [x, y]", "several.1.rate=3", "words.0=z")
    assert read == Toy(name="a", several=(Inner(rate=1.0), Inner(rate=3.0)), words=("z", "y"))
    assert toy("name: a\nseveral: [{rate: 1}]", "several.0={day: x}").several == (Inner(day="x"),)


def test_the_last_override_wins_and_values_may_hold_equals_signs(toy):
    assert toy("name: a", "name=b", "name=c=d").name == "c=d"


def test_an_override_makes_the_sections_on_its_way(toy):
    assert toy("name: a\ninner:\n", "inner.rate=2").inner.rate == 2.0


@pytest.mark.parametrize("text", ["2026-01-01", "2026-01-01 10:00:00", "01:30"])
def test_dates_stay_text(toy, text):
    assert toy(f"name: a\ninner:\n  day: {text}").inner.day in (text, "90")
    assert toy("name: a", f"inner.day={text}").inner.day in (text, "90")


def test_the_text_of_a_file_is_taken_as_it_is(toy, tmp_path):
    text = "yes: [1, 2]\n  # not YAML\t\r\nünï\n\n"
    (tmp_path / "text").write_bytes(text.encode())
    assert toy("name: a", f"name=@{tmp_path}/text").name == text


def test_numbers_are_good_text(toy):
    assert toy("name: 12\nwords: [1.5, x]") == Toy(name="12", words=("1.5", "x"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["size"], r"--set takes KEY=VALUE, got 'size'"),
        (["=3"], r"--set takes KEY=VALUE, got '=3'"),
        (["several.2.rate=1"], r"--set several\.2\.rate: '2' must be an index from 0 to 1 of that list"),
        (["words.x=1"], r"--set words\.x: 'x' must be an index from 0 to 0"),
        (["name.first=1"], r"--set name\.first: 'name' is the value 'a', so it has no keys below it"),
        (["words.0.x=1"], r"--set words\.0\.x: "),
        (["size=[1"], r"size: must be a whole number \(got '\[1'\)"),
        (["size=7 # seven"], r"size: must be a whole number \(got '7 # seven'\)"),
        (["size=no"], r"size: must be a whole number \(got 'no'\)"),
        (["name=[a, 1]", "words=[[a]]"], r"words\.0: must be text \(got \['a'\]\)"),
        (["inner={day: a, day: b}"], r"--set inner: the key 'day' is given twice, in lines 1 and 1"),
        (["name=@/no/such/file"], r"there is no file /no/such/file"),
        (["name=@/dev/null/file"], r"there is no file /dev/null/file"),
        (["size=big"], r"size: must be a whole number \(got 'big'\)"),
        (["inner.rate=[]"], r"inner\.rate: must be a number \(got \[\]\)"),
        (["inner.rte=1"], r"inner: unknown key 'rte'; did you mean 'rate'\? valid keys: rate, day"),
        (["sise=1"], r"\(top\): unknown key 'sise'; did you mean 'size'\?"),
        (["several.0.rat=1"], r"several\.0: unknown key 'rat'; did you mean 'rate'\?"),
        (["name=null"], r"name: must be text \(got None\)"),
    ],
)
def test_a_wrong_override_is_told(toy, overrides, message):
    with pytest.raises(ConfigError, match=message):
        toy("name: a\nseveral: [{}, {}]\nwords: [x]", *overrides)


WORDS = ["no", "on", "y", "Off", "true", "1e6", "0x10", "010", "1_000", "01:30", "1.50", ".inf", "+7"]


@pytest.mark.parametrize("word", WORDS)
def test_a_word_is_text_where_text_is_wanted(toy, word):
    """In a file and after --set, by itself and in lists, as a value and as a key."""
    text = f"name: {word}\nwords: [{word}]\nwhich: {{{word}: {word}}}\nmaybe: {word}\nseveral: [{{day: {word}}}]"
    expected = Toy(name=word, words=(word,), which={word: word}, maybe=word, several=(Inner(day=word),))
    assert toy(text) == expected
    overrides = (f"words=[{word}]", f"which={{{word}: {word}}}", f"maybe={word}", f"several=[{{day: {word}}}]")
    assert toy("name: a", f"name={word}", *overrides) == expected


@pytest.mark.parametrize("word", ["yes", "on", "y", "true", "1", "True"])
def test_a_word_is_true_where_a_boolean_is_wanted(toy, word):
    assert toy(f"name: a\nflag: {word}").flag is True
    assert toy("name: a", f"flag={word}").flag is True


@pytest.mark.parametrize(
    ("word", "number"), [("1e6", 10**6), ("0x10", 16), ("1_000", 1000), ("+7", 7), ("2.5E3", 2500)]
)
def test_a_word_is_a_number_where_one_is_wanted(toy, word, number):
    assert toy(f"name: a\nsize: {word}\ninner: {{rate: {word}}}") == Toy(
        name="a", size=number, inner=Inner(rate=number)
    )
    read = toy("name: a", f"size={word}", f"inner={{rate: {word}}}")
    assert read == Toy(name="a", size=number, inner=Inner(rate=number))


def test_where_anything_is_wanted_yaml_says_what_it_is(toy):
    given = "{anon: no, port: 0x10, rate: 1e3, word: x, list: [on, {k: off}], none: null, quoted: 'no'}"
    expected = {"anon": False, "port": 16, "rate": 1000.0, "word": "x", "list": [True, {"k": False}], "none": None,
                "quoted": "no"}  # fmt: skip
    assert toy(f"name: a\noptions: {given}").options == expected
    assert toy("name: a", f"options={given}").options == expected
    assert toy("name: a", "options.anon=no", "options.deep.port=0x10").options == {"anon": False, "deep": {"port": 16}}
    assert conf.parse_yaml(f"[{given}, no]", "x") == [expected, False]


@pytest.mark.parametrize(
    "value",
    ["hash/set #1", "#1", "*.jsonl", "[a-c]/x", "[a, b]", "{a: b}", "%x", "a: b", "- a", "&a", "!x", "=", "a@b", "`",
     "'", '"a', "~/data", " a ", "a\tb", "x: [", "...", "--- a", "null #1", "|", "> x", "?", "a\n\nb"],
)  # fmt: skip
def test_an_override_is_text_where_text_is_wanted(toy, value):
    assert toy("name: a", f"name={value}").name == value


def test_an_override_is_a_list_where_lists_are_wanted_too(toy):
    assert toy("name: a", "one_or_more=[a, no]").one_or_more == ("a", "no")
    assert toy("name: a", "one_or_more=a: b #c").one_or_more == "a: b #c"
    assert toy("name: a", "words=[a, b]", "words.1=[c]").words == ("a", "[c]")


def test_quotes_and_null_are_yaml(toy):
    assert toy("name: a", "name='no'").name == "no"
    assert toy("name: a", 'name="a\\tb"').name == "a\tb"
    for null in ("null", "~", ""):
        assert toy("name: a\nmaybe: b", f"maybe={null}").maybe is None


def test_a_whole_section_can_be_set_and_then_a_key_of_it(toy):
    assert toy("name: a", "inner=rate: 2", "inner.day=x").inner == Inner(rate=2.0, day="x")
    assert toy("name: a", "several=[{day: no}]", "several.0.rate=3").several == (Inner(day="no", rate=3.0),)


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("name: a\nsize: 1\nname: b", "name", "1 and 3"),
        ("name: a\ninner:\n  rate: 1\n  day: x\n  rate: 1", "rate", "3 and 5"),
        ("name: a\noptions: [{1: a}, {1: a, '1': b}]", "1", "2 and 2"),
        ("name: a\noptions: {no: a,\n no: b}", "no", "2 and 3"),
    ],
)
def test_a_key_that_is_given_twice_is_told_with_both_lines(toy, text, key, lines):
    with pytest.raises(ConfigError, match=rf"toy\.yaml: the key '{key}' is given twice, in lines {lines}"):
        toy(text)


def test_a_merged_key_may_be_given_again(toy):
    text = "name: a\nwhich: &a {x: '1', y: '2'}\noptions: {b: &b {<<: *a, x: 3}, c: {<<: *b, y: 4}}"
    assert toy(text).options == {"b": {"x": 3, "y": "2"}, "c": {"x": 3, "y": 4}}


def test_a_missing_key_is_told_with_what_to_do(toy):
    with pytest.raises(ConfigError, match=r"toy\.yaml:\n  name: is missing; add it to the file, or --set name=VALUE"):
        toy("size: 1")


def test_set_is_not_advised_for_a_file_that_it_does_not_reach(tmp_path):
    (tmp_path / "toy.yaml").write_text("size: 1", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        conf.read(Toy, str(tmp_path / "toy.yaml"), "recipes")
    assert str(caught.value).splitlines()[1:] == ["  name: is missing; add it to the file"]


def test_all_mistakes_are_told_at_once(toy):
    with pytest.raises(ConfigError) as caught:
        toy("size: x\ninner: {rate: y}\nwords: 3")
    assert [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]] == [
        "name",
        "size",
        "inner.rate",
        "words",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", r"toy\.yaml is not valid YAML: (.|\n)*line 1"),
        ("a: b: c", r"toy\.yaml is not valid YAML"),
        ("name: !!python/name:os.system x", r"toy\.yaml is not valid YAML"),
        ("", r"must be a mapping of keys, not NoneType"),
        ("- a", r"must be a mapping of keys, not list"),
        ("just text", r"must be a mapping of keys, not str"),
        ("1: x", r"unknown key '1'"),
    ],
)
def test_text_that_is_no_configuration(toy, text, message):
    with pytest.raises(ConfigError, match=message):
        toy(text)


def test_a_file_that_is_not_utf8(tmp_path):
    (tmp_path / "toy.yaml").write_bytes(b"name: \xff")
    with pytest.raises(ConfigError, match=r"toy\.yaml is not UTF-8 text"):
        conf.load(Toy, str(tmp_path / "toy.yaml"), "recipes", [])


@pytest.mark.parametrize("name", ["none.yaml", "dir/none.yaml", "conf/recipes/none.yaml", "."])
def test_a_path_without_a_file(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"there is no (file|configuration)"):
        conf.load(Toy, name, "recipes", [])


def test_a_name_that_is_not_shipped_is_told_with_those_that_are():
    with pytest.raises(
        ConfigError, match=r"no configuration 'demos' in conf/recipes; shipped: dedup_text, demo, synth; or give a"
    ):
        conf.find("demos", "recipes")


def test_shipped_configurations_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert {"demo", "synth"} <= set(conf.shipped("recipes"))
    assert conf.find("demo", "recipes") == conf.find("conf/recipes/demo.yaml", "anything")


def test_where_a_relative_path_begins_is_said_of_one_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"there is no file \./mine\.yaml in {tmp_path}, where relative paths begin"):
        conf.find("./mine.yaml", "recipes")


def test_a_file_goes_before_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "recipes").mkdir(parents=True)
    (tmp_path / "conf/recipes/demo.yaml").write_text("name: mine")
    assert conf.find("conf/recipes/demo.yaml", "recipes") == "name: mine"


def test_a_configuration_may_lie_on_any_file_system():
    import fsspec

    fsspec.filesystem("memory").pipe_file("/toys/toy.yaml", b"name: far")
    assert conf.load(Toy, "memory://toys/toy.yaml", "recipes", []).name == "far"
