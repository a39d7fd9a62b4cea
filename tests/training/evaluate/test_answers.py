import pytest

from training.evaluate.answers import given_answer, is_same, stated_answer


@pytest.mark.parametrize(
    ("text", "stated", "given"),
    [
        ("9 * 2 = <<9*2=18>>18\n#### 1,018\n", "1,018", "1,018"),
        (r"So \boxed{\frac{1}{2}} and not \boxed{3}", "3", "3"),
        (r"Thus $\boxed{\sqrt{x^{2}}}$, about 2.", r"\sqrt{x^{2}}", r"\sqrt{x^{2}}"),
        ("It takes 40 minutes, or 2/3 of an hour.", None, "2/3"),
        (r"unfinished \boxed{1", None, "1"),
        ("I do not know.", None, None),
    ],
)
def test_the_answer_of_a_solution(text, stated, given):
    assert stated_answer(text) == stated
    assert given_answer(text) == given


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1,000", "$1000.00$"), ("0.5", r"\dfrac{1}{2}"), (r"-\frac{3}{4}", "-3/4"), ("18.", "18"),
        (r"\left( 1, 2 \right)", "(1,2)"), ("50%", r"50\%"), ("x+1", "x + 1"), ("1/0", "1/0"),
    ],
)  # fmt: skip
def test_equal_answers(one, other):
    assert is_same(one, other)


@pytest.mark.parametrize(("one", "other"), [("1", "2"), ("0.5", "0.51"), ("(1,2)", "(12)"), ("x", "y"), ("3", "x")])
def test_unequal_answers(one, other):
    assert not is_same(one, other)
