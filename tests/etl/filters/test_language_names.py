"""Codes and English names of languages."""

import pytest

from etl.filters.language_names import GROUPS, LABELS, UNDETERMINED, code_of, group_of, name_of


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("English", "en"),
        ("chinese", "zh"),
        ("MANDARIN", "zh"),
        ("Cantonese", "yue"),
        ("Norwegian Bokmål", "nb"),
        ("Norwegian  Nynorsk", "nn"),
        ("Farsi", "fa"),
        ("Swiss German", "als"),
        ("undetermined", UNDETERMINED),
        ("EN", "en"),
        ("nb", "nb"),
    ],
)
def test_names_and_codes_are_read_in_any_case(name, code):
    assert code_of(name) == code


def test_every_label_has_a_name_that_means_it():
    assert len(LABELS) == 176
    assert {code_of(name_of(label)) for label in LABELS} == LABELS
    assert {code_of(label) for label in LABELS} == LABELS


@pytest.mark.parametrize(
    ("name", "near"),
    [("Englisch", "'english'"), ("Portugese", "'portuguese'"), ("xy", "docs/concepts/language.md"), ("", "docs")],
)
def test_an_unknown_name_is_an_error_with_the_nearest(name, near):
    with pytest.raises(ValueError, match=near):
        code_of(name)


def test_the_groups():
    assert {code for code in LABELS if group_of(code) == "zh"} == {"zh", "yue", "wuu"}
    assert group_of("en") == "en"
    assert set(GROUPS) - {"nb"} <= LABELS
