"""Extraction of final answers: a table of cases, and arbitrary text."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.tasks.answer_extraction import LONGEST, final_answer
from pipelines.verifiers.answer_text import last_boxed

BOXED = [
    # contents of a box, which are the answer whatever is around it
    "7", "-7", "0", "3.14", "-0.5", ".5", "1,234", "1{,}234", "12\\%", "50\\%", "\\$20", "1/2", "-3/4", "2\\frac{1}{3}",
    "\\frac{1}{2}", "\\frac12", "\\dfrac{3}{4}", "\\tfrac{a}{b}", "\\frac{\\sqrt{3}}{2}", "\\sqrt{2}",
    "\\sqrt[3]{5}",
    "2\\sqrt{2}", "x^2", "x^{2}+1", "a_{n+1}", "(1, 2)", "[0, 1)", "(-\\infty, 3]", "[1,2] \\cup [3,4]",
    "\\{1, 2, 3\\}",
    "\\{x : x > 0\\}", "\\emptyset", "\\pi", "2\\pi r", "\\frac{\\pi}{4}", "e^{i\\pi}", "10^{-3}",
    "6.02 \\times 10^{23}",
    "\\text{A}", "\\text{(B)}", "\\textbf{(C)}", "\\mathrm{cm}", "5 \\text{ cm}", "5\\,\\mathrm{m/s}", "90^\\circ",
    "x = 5", "y=2x+1", "x \\le 3", "\\log_2 8", "\\ln 2", "\\sin x", "\\binom{5}{2}", "5!", "n(n+1)/2", "3 + 4i",
    "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}", "\\left(\\frac{1}{2}, 3\\right)", "|x|", "\\lfloor x \\rfloor",
    "\\overline{AB}", "\\angle ABC", "A \\cap B", "p \\to q", "\\text{True}", "\\text{no solution}", "\\text{Monday}",
    "1010_2", "3:2", "12:30", "\\{\\}", "\\{a\\{b\\}\\}", "{{5}}", "{a{b{c{d}}}}", "f(x) = {x^{2^{3}}}",
    "1 \\frac{2}{3}",
]  # fmt: skip

AROUND = ["The answer is $\\boxed{%s}$.", "so \\boxed{%s}", "\\[ \\boxed {%s} \\]\nI hope that helps, 12 times."]

CASES = {
    # the forms of "answer is"
    "The answer is 7.": "7",
    "The answer is 7": "7",
    "the answer is: 7": "7",
    "The final answer is 7.": "7",
    "Final Answer: The final answer is $7$. I hope it is correct.": "7",
    "Final answer: 7": "7",
    "**Final Answer:** 42": "42",
    "**Answer:** 42": "42",
    "Answer: 42": "42",
    "Answer:\n42": "42",
    "ANSWER: 42": "42",
    "answer = 42": "42",
    "The result is 3.5.": "3.5",
    "The answer is $\\frac{1}{2}$.": "\\frac{1}{2}",
    "The answer is \\(x+1\\).": "x+1",
    "The answer is \\[x+1\\]": "x+1",
    "The answer is $$5$$": "5",
    "The answer is 3.14.": "3.14",
    "The answer is -2.": "-2",
    "The answer is 1/2.": "1/2",
    "The answer is 50%.": "50%",
    "The answer is $20.": "$20",
    "The answer is 1,234.": "1,234",
    "The answer is (B).": "(B)",
    "The answer is A": "A",
    "The answer is (1, 2).": "(1, 2)",
    "The answer is [0, 1).": "[0, 1)",
    "The answer is x = 5.": "x = 5",
    "The answer is no.": "no",
    "The answer is 5 cm.": "5 cm",
    "The answer is 10 apples!": "10 apples",
    "The answer is 5. The question was easy.": "5",
    "The answer is 5.\n\nQ: What is 6?": "5",
    "The answer is 3. No, the answer is 4.": "4",
    "First the answer is 3.\nBut then the answer is 4.": "4",
    "The answer is that 9": "9",
    "So the answers are 3 and 4.": "3 and 4",
    "answer is 12": "12",
    "The answer is **12**.": "12",
    # hashes
    "48/2 = 24 #### 24": "24",
    "#### 72": "72",
    "#### 1\n#### 2": "2",
    "work\n#### -5\nmore": "-5",
    "the answer is 5 #### 6": "6",
    "#### 1,000": "1,000",
    "#### $18": "$18",
    # the last number
    "It took 3 hours": "3",
    "3 + 4 = 7": "7",
    "x is -5": "-5",
    "1,234,567 people": "1234567",
    "about 3.5": "3.5",
    "25% of it": "25%",
    "so 3/4 remain": "3/4",
    "It costs $15": "15",
    "In 1999 it was 2.50": "2.50",
    "It is 7.": "7",
    "from 1 to 10": "10",
    # several boxes, broken ones, reasoning
    "\\boxed{1} and \\boxed{2}": "2",
    "\\boxed{1} then \\boxed{2": "1",
    "\\boxed{": None,
    "\\boxed{}": None,
    "\\boxed{ }": None,
    "\\boxed 5": "5",
    "\\boxed 5$ is it": "5",
    "\\fbox{9}": "9",
    "\\boxed{\\boxed{3}}": "3",
    "\\boxed{a}b\\boxed{c}}": "c",
    "<think>\\boxed{1}</think> It is 2": "2",
    "<think>the answer is 1</think> The answer is 2.": "2",
    "<think>5": "5",
    "</think>": None,
    # none
    "": None,
    " ": None,
    "I do not know": None,
    "no digits here": None,
    # only the last line concludes
    "I add\nTherefore it is blue and\nit is big": None,
    "Work\nso A\nit was B": None,
    "Work\nso 3 remain\nso 5 remain": "5",
    "answer": None,
    "The answer is": None,
    "The answer is .": None,
    "####": None,
    "\\boxed": None,
    "\n\n\n": None,
    "...": None,
    "$$": None,
}

BOXED_CASES = [(around % inside, inside) for inside in BOXED for around in AROUND]


def test_there_are_at_least_two_hundred_cases() -> None:
    assert len(BOXED_CASES) + len(CASES) >= 200
    assert len({text for text, _ in BOXED_CASES} | set(CASES)) == len(BOXED_CASES) + len(CASES)


@pytest.mark.parametrize(("text", "answer"), BOXED_CASES)
def test_the_content_of_the_box_is_the_answer(text: str, answer: str) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(("text", "answer"), CASES.items())
def test_answers_in_other_forms(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


FRAGMENTS = ["\\boxed{", "\\boxed", "{", "}", "\\{", "$", "the answer is", "answer:", "####", "</think>", "1,", "9",
             ".", "/", "-", "%", " ", "\n", "\\", "\x00", "Ω", "é", "٣", "😀"]  # fmt: skip


@given(st.one_of(st.text(max_size=400), st.lists(st.sampled_from(FRAGMENTS), max_size=200).map("".join)))
@settings(max_examples=500, deadline=None)
def test_the_answer_to_any_text_is_a_part_of_it_or_none(text: str) -> None:
    answer = final_answer(text)
    assert answer is None or (answer.strip() == answer != "")
    if answer is not None and answer not in text:
        assert answer in text.replace(",", "").replace("$", "").replace("−", "-")


@pytest.mark.parametrize(
    "fragment", [*FRAGMENTS, "answer is ", "1,111", "-$-$", "{\\boxed{", "\\boxed{{", "9" * 50 + ","]
)
def test_extraction_takes_linear_time(fragment: str) -> None:
    """A quarter of a million characters of one fragment: a search with backtracking would not finish."""
    started = time.process_time()
    final_answer(fragment * (4 * LONGEST // len(fragment)))
    last_boxed(fragment * (LONGEST // len(fragment)))
    assert time.process_time() - started < 5
