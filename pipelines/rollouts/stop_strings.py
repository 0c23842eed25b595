"""Where a response ends because its text contains a stop string."""

import bisect
from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

Ended = Callable[[list[list[int]]], list[int | None]]
"""For each response so far (token ids), its length where it ends without an end token, such as with the token that
completes a stop string; None if it has not ended. More tokens must not change the length."""


def ended_by(stop: Sequence[str], tokenizer: PreTrainedTokenizerBase | None) -> Ended | None:
    """The lengths of responses up to the token that completes their first stop string; None without stop strings."""
    strings = [string for string in stop if string]
    if not strings:
        return None
    assert tokenizer is not None, "an engine that stops at strings was loaded with a tokenizer"

    def ended(responses: list[list[int]]) -> list[int | None]:
        texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
        return [
            _length_to_stop(response, strings, tokenizer) if any(string in text for string in strings) else None
            for response, text in zip(responses, texts, strict=True)
        ]

    return ended


def _length_to_stop(response: list[int], stop: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of a response up to the one that completes its first stop string, by bisection."""

    def stops(length: int) -> bool:
        text = str(tokenizer.decode(response[:length], skip_special_tokens=True))
        return any(string in text for string in stop)

    return bisect.bisect_left(range(len(response)), True, lo=1, key=stops)
