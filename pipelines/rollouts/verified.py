"""Sampled responses with their verdicts: each is verified as soon as it has ended, while others are still sampled."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipelines.rollouts.engine import Rollouts, never
from pipelines.verifiers import Judge, Verdict
from pipelines.verifiers.judge import Item


@dataclass(frozen=True)
class Verified:
    """Rollouts, and for each row its text, what the judge received, and the verdict."""

    rollouts: Rollouts
    texts: list[str]
    items: list[Item]
    verdicts: list[Verdict]


def verified(
    generate: Callable[..., Rollouts],
    judge: Judge,
    *,
    decode: Callable[[Sequence[list[int]]], list[str]],
    item: Callable[[int, str, bool], Item],
    interrupted: Callable[[], bool] = never,
) -> Verified:
    """Sample by `generate`, an engine's with all arguments but `finished`, and verify all responses.

    `decode` turns tokens into texts, and `item` is what the judge receives for a row: (row, text, whether it has
    stopped). The result does not depend on when a response was reported. Raises what `generate` and `Judge.rewards`
    raise, and `Interrupted` while verdicts are waited for.
    """
    texts: dict[int, str] = {}
    items: dict[int, Item] = {}
    with judge.verification() as verification:

        def finished(rows: Sequence[int], responses: Sequence[list[int]], stopped: Sequence[bool]) -> None:
            decoded = decode(responses)
            texts.update(zip(rows, decoded, strict=True))
            new = [item(*ended) for ended in zip(rows, decoded, stopped, strict=True)]
            items.update(zip(rows, new, strict=True))
            verification.add(new)

        rollouts = generate(finished=finished)
        every = range(len(rollouts.lengths))
        # What the engine has not reported.
        if rest := [row for row in every if row not in items]:
            responses, stopped = rollouts.responses(), rollouts.stopped.tolist()
            finished(rest, [responses[row] for row in rest], [stopped[row] for row in rest])
        # The verdicts are in the order in which the items were added, as are the dictionaries.
        verdicts = dict(zip(items, verification.verdicts(interrupted), strict=True))
    return Verified(
        rollouts, [texts[row] for row in every], [items[row] for row in every], [verdicts[row] for row in every]
    )
