"""Contamination against a search of every n-gram in a set of tuples."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.contamination import overlap, words

TEXT = st.lists(st.sampled_from(["a", "b", "c", "7", "+"]), max_size=25).map(" ".join)


@given(items=st.lists(TEXT, max_size=6), training=st.lists(TEXT, max_size=6), n=st.integers(5, 8))
def test_overlap_is_that_of_sets_of_tuples(items: list[str], training: list[str], n: int) -> None:
    def grams(text: str, size: int) -> set[tuple[str, ...]]:
        own = words(text)
        return {tuple(own[i : i + size]) for i in range(len(own) - size + 1)}

    looked = [item for item in items if len(words(item)) >= 5]
    hit = [
        i for i in looked if any(grams(i, min(n, len(words(i)))) & grams(t, min(n, len(words(i)))) for t in training)
    ]
    found = overlap({"x": items}, training, n)["x"]
    assert found["items"] == len(items)
    assert found["short"] == len(items) - len(looked)
    assert found["contaminated"] == (len(hit) / len(looked) if looked else None)
    assert found["examples"] == hit[:3]


def test_layout_does_not_hide_a_copy_and_texts_do_not_run_together() -> None:
    question = "Natalia sold clips to 48 of her friends in April, and then she sold half as many in May."
    again = question.upper().replace(" ", "\n  ")
    assert overlap({"x": [question]}, ["before " + again])["x"]["contaminated"] == 1
    assert overlap({"x": [question]}, [question[:45], question[45:]])["x"]["contaminated"] == 0


def test_memory_is_that_of_the_evaluation_sets(monkeypatch: Any) -> None:
    """Training text is read once, in chunks, and not kept."""
    monkeypatch.setattr("pipelines.data.contamination.CHUNK", 100)
    asked: list[int] = []

    def training() -> Any:
        for i in range(1000):
            asked.append(i)
            yield f"line {i} of a text that goes on and on with number {i} and others"

    item = "line 700 of a text that goes on and on with number 700"
    assert overlap({"x": [item], "y": ["quite another text that nobody has ever seen here"]}, training()) == {
        "x": {"items": 1, "short": 0, "contaminated": 1.0, "examples": [item]},
        "y": {"items": 1, "short": 0, "contaminated": 0.0, "examples": []},
    }
    assert asked == list(range(1000))
