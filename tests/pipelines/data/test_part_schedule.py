"""Which parts are taken, in which order, and how far a preparation says that it is; without any file."""

import pytest

from pipelines.data.part_schedule import PartSchedule, Record
from pipelines.data.sources import Part


def parts(source: str, count: int) -> list[Part]:
    """Parts of ten bytes each."""
    return [Part(source, f"{i:05d}", "jsonl", "f.jsonl", "text", 10 * i, 10 * i + 10) for i in range(count)]


def record(tokens: int = 10) -> Record:
    """Two tokens of a part are held out."""
    shards = {"train": {"tokens": tokens - 2}, "validation": {"tokens": 2}}
    return {"documents": 3, "characters": 40, "shards": shards}


def taken(schedule: PartSchedule) -> list[str]:
    """The sources of the parts, each of which is done before the next is asked for."""
    sources = []
    while part := schedule.next():
        sources.append(part.source)
        schedule.done(part, record())
    return sources


@pytest.mark.parametrize(("budget", "count"), [(19, 2), (20, 2), (21, 3), (1, 1), (500, 5), (None, 5)])
def test_parts_are_taken_up_to_the_one_that_reaches_the_budget(budget: int | None, count: int) -> None:
    """The tokens of both splits count."""
    schedule = PartSchedule(parts("s", 5), {"s": budget}, {})
    assert len(taken(schedule)) == len(schedule.used()) == count


def test_sources_take_turns_by_the_share_of_their_parts() -> None:
    """Those of b, which has three times as many, come three times as often."""
    sources = taken(PartSchedule([*parts("a", 2), *parts("b", 6)], {"a": None, "b": None}, {}))
    assert [sources[:2].count("a"), sources[2:4], sources[4:6].count("a"), sources[6:]] == [
        1,
        ["b", "b"],
        1,
        ["b", "b"],
    ]


def test_the_expected_characters_follow_from_the_parts_that_are_done() -> None:
    a, b = parts("a", 2), parts("b", 4)
    schedule = PartSchedule([*a, *b], {"a": None, "b": 20}, {a[0]: record()})
    assert schedule.progress().expected is None  # nothing is known of b
    first = schedule.next()
    assert first is not None
    schedule.done(first, record())
    progress = schedule.progress()
    # Half of a is 40 characters; half of the budget of b too.
    assert (progress.parts, progress.all_parts, progress.documents, progress.characters) == (2, 6, 6, 80)
    assert (progress.expected, progress.fresh) == (160, 40)
