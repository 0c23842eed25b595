"""Contamination against a search for every n-gram in sets of tuples."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.contamination import overlap, shared
from pipelines.data.ngrams import split_words

TEXT = st.lists(st.sampled_from(["a", "b", "c", "7", "+"]), max_size=25).map(" ".join)


@given(items=st.lists(TEXT, max_size=6), training=st.lists(TEXT, max_size=6), n=st.integers(5, 8))
def test_overlap_is_that_of_sets_of_tuples(items: list[str], training: list[str], n: int) -> None:
    def grams(text: str, size: int) -> set[tuple[str, ...]]:
        words = split_words(text)
        return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}

    def is_contaminated(item: str) -> bool:
        size = min(n, len(split_words(item)))
        return any(grams(item, size) & grams(text, size) for text in training)

    long_enough = [item for item in items if len(split_words(item)) >= 5]
    contaminated = [item for item in long_enough if is_contaminated(item)]
    report = overlap({"x": items}, training, n)["x"]
    assert report["items"] == len(items)
    assert report["short"] == len(items) - len(long_enough)
    is_measured = long_enough and any(split_words(text) for text in training)
    assert report["contaminated"] == (len(contaminated) / len(long_enough) if is_measured else None)
    assert report["examples"] == contaminated[:3]


def test_layout_does_not_hide_a_copy_and_texts_do_not_run_together() -> None:
    question = "Natalia sold clips to 48 of her friends in April, and then she sold half as many in May."
    again = question.upper().replace(" ", "\n  ")
    assert overlap({"x": [question]}, ["before " + again])["x"]["contaminated"] == 1
    assert overlap({"x": [question]}, [question[:45], question[45:]])["x"]["contaminated"] == 0
    assert overlap({"x": [question]}, ["", " \n"])["x"]["contaminated"] is None


def test_training_text_is_streamed(monkeypatch: Any) -> None:
    """It is read once, in chunks."""
    monkeypatch.setattr("pipelines.data.contamination.CHUNK", 100)
    lines_read: list[int] = []

    def training() -> Any:
        for i in range(1000):
            lines_read.append(i)
            yield f"line {i} of a text of many lines with number {i} and others"

    item = "line 700 of a text of many lines with number 700"
    assert overlap({"x": [item], "y": ["quite another text that nobody has ever seen here"]}, training()) == {
        "x": {"items": 1, "short": 0, "contaminated": 1.0, "examples": [item]},
        "y": {"items": 1, "short": 0, "contaminated": 0.0, "examples": []},
    }
    assert lines_read == list(range(1000))


def test_no_ngram_crosses_two_texts() -> None:
    """Of its 21 words the texts have 11 and 10, each too few for an n-gram of 13."""
    question = "Natalia sold clips to 48 of her friends in April, and then she sold half as many in May."
    halves = question[:50], question[50:]
    assert halves[0].endswith("April, ")
    assert overlap({"x": [question]}, halves)["x"]["contaminated"] == 0
    assert overlap({"x": [question]}, ["".join(halves)])["x"]["contaminated"] == 1
    assert shared([question], halves) == [False]


def test_three_examples_are_shown_at_most() -> None:
    items = [f"item {number} is in the training text" for number in range(5)]
    report = overlap({"x": items}, items)["x"]
    assert (report["contaminated"], report["examples"]) == (1.0, items[:3])
