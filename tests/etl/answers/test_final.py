r"""What a text states as its answer, and how."""

import pytest

from etl.answers.final import final_answer, stated_answer

STATED = [
    (r"So \boxed{\frac{1}{2}} and not \boxed{3}", "boxed", "3"),
    (r"Thus $\boxed{\sqrt{x^{2}}}$, about 2.", "boxed", r"\sqrt{x^{2}}"),
    (r"$\boxed{\{1,2\}}$", "boxed", r"\{1,2\}"),
    (r"\boxed{\left\{ x \right.}", "boxed", r"\left\{ x \right."),
    (r"x = \boxed{1} or x = \boxed{2}", "boxed", "1, 2"),
    (r"$\boxed{1}$ and $\boxed{2}$", "boxed", "1, 2"),
    (r"\boxed{5}, so hm \boxed{}", "boxed", "5"),
    (r"\boxed{3} wait, \boxed{4", "boxed", "3"),
    (r"\boxed 5", "boxed", "5"),
    ("<answer> 42 apples </answer>", "tagged", "42 apples"),
    (r"<answer>\boxed{B}</answer>", "boxed", "B"),
    ("9 * 2 = <<9*2=18>>18\n#### 1,018\n", "marked", "1,018"),
    ("#### 18\n\nQuestion: what is 5+5?\nAnswer:", "marked", "18"),
    ("The answer is 42.\n\nNote that step 3 can be skipped.", "said", "42"),
    ("The answer is 42. Step 2 was hard, see equation (7).", "said", "42"),
    ("Therefore, the answer is 3.5.", "said", "3.5"),
    ("Final Answer: The final answer is $\\frac{1}{2}$. I hope it is correct.", "said", r"$\frac{1}{2}$"),
    ("**Final Answer**\n\n$x=5$", "said", "$x=5$"),
    ("#### Final Answer\n42", "said", "42"),
    ("The answer is (B).", "said", "B"),
    ("The correct answer is B) 12", "said", "B"),
    ("**Answer:** 42", "said", "42"),
    ("Answer:\nB", "said", "B"),
    ("A is wrong, so option C is correct.", "said", "C"),
    ("The answer is 12 apples, because he ate 3.", "said", "12 apples"),
    ("The final answer is: 1,234 dollars.", "said", "1,234 dollars"),
    ("答案是 5。", "said", "5"),
    ("<think>so \\boxed{3}</think>The answer is 4", "said", "4"),
]
READ = [
    ("7", "whole", "7"),
    ("x = 5", "whole", "x = 5"),
    (r"\frac{1}{2}", "whole", r"\frac{1}{2}"),
    ("(B)", "whole", "(B)"),
    ("I looked at all of them.\n\n**C**", "option", "C"),
    ("B. Paris", "option", "B"),
    ("It takes 40 minutes, or 2/3 of an hour.", "last_number", "2/3"),
    ("#### Step 3: add 5\nSo it is 12.", "last_number", "12"),
    ("So she has 18 eggs.\nSee step 3.", "last_number", "18"),
    ("1. Add 2 and 3.\n2. We get 5.\n3. Done", "last_number", "5"),
    ("It costs $1,234.50 in total.", "last_number", "$1,234.50"),
    ("So the area is $\\frac{3}{4}$.", "last_number", r"\frac{3}{4}"),
    ("Hence $x = 2\\sqrt{3}$.", "last_number", r"2\sqrt{3}"),
    ("We get −5 or 50%.", "last_number", "50%"),
    (r"unfinished \boxed{1", "last_number", "1"),
    ("The answer is not clear. But we get 9.", "last_number", "9"),
]


@pytest.mark.parametrize(("text", "where", "answer"), STATED)
def test_a_stated_answer_is_found_where_it_is_stated(text, where, answer):
    assert final_answer(text) == (answer, where)
    assert stated_answer(text.rpartition("</think>")[2]) == (answer, where)


@pytest.mark.parametrize(("text", "where", "answer"), READ)
def test_without_a_statement_an_answer_is_taken_and_said_to_be(text, where, answer):
    assert final_answer(text) == (answer, where)
    assert stated_answer(text) is None


@pytest.mark.parametrize("text", ["", "I do not know.", "None.", "See step 3."])
def test_a_text_without_an_answer_has_none(text):
    assert final_answer(text) is None
