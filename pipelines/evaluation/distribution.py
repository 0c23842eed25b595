"""What a model's next-token distribution looks like on held-out text: by domain, by position, by class of token.

`token_table` runs the model and keeps a few numbers a token; everything else is arithmetic on that table. Terms:
bits per byte is the loss in bits over the bytes of the predicted text, so tokenizers can be compared; the expected
calibration error (Guo et al. 2017) is the mean gap, over 15 bins of equal width weighted by their tokens, between how
sure the model is of its likeliest token and how often that is the right one; forking tokens (Wang et al. 2025) are the
fifth of the places with the highest entropy.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from pipelines.data.corpus import Corpus
from pipelines.evaluation.metrics import Estimate, estimate, interval_of, mean_and_error, resampling
from shaping.loss import token_statistics

BATCH_TOKENS = 16_384
BINS = 15
HEADS = (1, 4, 16, 64, 256)
"""Sizes of the head at which its mass is given, besides the data's own k: up to an eighth of the vocabulary."""
FORKING_SHARE = 0.2
POSITIONS = 8
"""Parts of a row by which a position is told."""
COMMONEST = 20

Transform = Callable[[Tensor], Tensor]
"""Logits [N, V] -> the logits of the distribution that is measured in their place."""


def as_it_is(logits: Tensor) -> Tensor:
    """The model's own distribution."""
    return logits


def tempered(temperature: float) -> Transform:
    """The distribution at a temperature."""
    return lambda logits: logits / temperature


@dataclass(frozen=True)
class TokenTable:
    """A few numbers for each predicted token of held-out text, [rows, length] each."""

    targets: NDArray[np.int64]
    loss: NDArray[np.float64]
    """-log p of the token, nats."""
    entropy: NDArray[np.float64]
    rank: NDArray[np.int64]
    """Of the token, 1 is the likeliest."""
    confidence: NDArray[np.float64]
    """Probability of the likeliest token."""
    head_mass: dict[int, NDArray[np.float64]]
    """Size of the head -> its mass."""
    tail_mass: NDArray[np.float64]
    """Beyond the data's own k."""


def token_table(model: PreTrainedModel, rows: NDArray[Any], top_k: int, transform: Transform = as_it_is) -> TokenTable:
    """Run `model` on rows [R, length + 1] of token ids."""
    length = rows.shape[1] - 1
    columns: list[Tensor] = []
    vocabulary = model.config.vocab_size
    heads = sorted({min(top_k, vocabulary), *(k for k in HEADS if 8 * k <= vocabulary)})
    for batch, logits in _batches(model, rows):
        logits = transform(logits.flatten(0, 1))
        stats = token_statistics(logits, batch[:, 1:].flatten(), top_k)
        own = dict.fromkeys((min(top_k, vocabulary),), stats.head_mass)
        likeliest = logits.float().softmax(-1).topk(max(heads), -1).values
        masses = likeliest.cumsum(-1)
        parts = [
            -stats.target_probability.log(),
            stats.entropy,
            stats.target_rank,
            likeliest[:, 0],
            stats.tail_mass,
            *(own.get(k, masses[:, k - 1]) for k in heads),
        ]
        columns.append(torch.stack([part.double() for part in parts], 0).view(len(parts), len(batch), length).cpu())
    loss, entropy, rank, confidence, tail, *masses_ = torch.cat(columns, 1).numpy()
    return TokenTable(
        rows[:, 1:].astype(np.int64),
        loss,
        entropy,
        rank.astype(np.int64),
        confidence,
        dict(zip(heads, masses_, strict=True)),
        tail,
    )


def _batches(model: PreTrainedModel, rows: NDArray[Any]) -> Any:
    """(tokens [B, length + 1], logits [B, length, V]) of the rows, batch by batch."""
    size = max(1, BATCH_TOKENS // (rows.shape[1] - 1))
    with torch.inference_mode():
        for start in range(0, len(rows), size):
            batch = torch.from_numpy(rows[start : start + size].astype(np.int64)).to(model.device)
            yield batch, model(input_ids=batch[:, :-1]).logits


def mean_entropy(model: PreTrainedModel, rows: NDArray[Any], temperature: float = 1.0) -> tuple[float, float]:
    """Mean entropy, nats a token, of `model` on rows [R, length + 1] at a temperature T, and its slope in log T.

    d H / d log T = Var_p(z / T), the variance of the scaled logits under the tempered distribution.
    """
    entropies, slopes = 0.0, 0.0
    for _, logits in _batches(model, rows):
        log_probs = (logits.flatten(0, 1).float() / temperature).log_softmax(-1)
        p = log_probs.exp()
        entropy = -(p * log_probs).sum(-1)
        entropies += entropy.double().sum().item()
        slopes += ((p * log_probs.square_()).sum(-1) - entropy**2).double().sum().item()
    count = len(rows) * (rows.shape[1] - 1)
    return entropies / count, slopes / count


LOWEST, HIGHEST = 0.1, 10.0
CLOSE = 1e-5
"""Nats to which a matched entropy agrees."""


def matched_temperature(model: PreTrainedModel, rows: NDArray[Any], entropy: float) -> float:
    """The temperature between 0.1 and 10 at which `model` has a mean entropy on rows [R, length + 1].

    Entropy rises with temperature: Newton's steps in log T from 1, halving the interval where one leaves it. Raises
    `ValueError` where no such temperature gives the entropy.
    """
    low, high, at = math.log(LOWEST), math.log(HIGHEST), 0.0
    while high - low > 1e-7:
        found, slope = mean_entropy(model, rows, math.exp(at))
        if abs(found - entropy) < CLOSE:
            return math.exp(at)
        low, high = (at, high) if found < entropy else (low, at)
        step = at - (found - entropy) / max(slope, 1e-9)
        at = step if low < step < high else (low + high) / 2
    raise ValueError(f"no temperature between {LOWEST} and {HIGHEST} gives the model an entropy of {entropy:.4f} nats")


def headline(table: TokenTable, top_k: int, byte_lengths: NDArray[np.int64]) -> dict[str, Estimate]:
    """The metrics of the text as a whole, errors over rows, which are long enough to be apart.

    `byte_lengths` [V]: bytes of each token; special tokens have none.
    """
    loss = estimate(table.loss.mean(1), fractions=False)
    count = len(table.loss)
    perplexity = math.exp(loss.value)
    ends = (None, None) if loss.low is None or loss.high is None else (math.exp(loss.low), math.exp(loss.high))
    found = {
        "perplexity": Estimate(perplexity, loss.stderr and perplexity * loss.stderr, count, *ends),
        "entropy": estimate(table.entropy.mean(1), fractions=False),
        "head_mass": estimate(table.head_mass[min(top_k, max(table.head_mass))].mean(1)),
        "tail_mass": estimate(table.tail_mass.mean(1)),
        "bits_per_byte": _ratio(table.loss.sum(1) / math.log(2), byte_lengths[table.targets].sum(1)),
        "top_1": estimate((table.rank == 1).mean(1)),
        "calibration_error": _calibration_error(table),
    }
    return found | {f"head_mass@{k}": estimate(mass.mean(1)) for k, mass in table.head_mass.items()}


def _ratio(above: NDArray[np.float64], below: NDArray[np.int64]) -> Estimate:
    """The ratio of two sums over rows, its error by linearisation, its interval by resampling rows."""
    value, count = float(above.sum() / max(1, below.sum())), len(above)
    if count < 2:
        return Estimate(value, None, count)
    _, error = mean_and_error((above - value * below) / below.mean())
    weights = resampling(count)
    low, high = interval_of((weights @ above) / (weights @ below), count)
    return Estimate(value, error, count, float(low), float(high))


def _bins(table: TokenTable) -> tuple[NDArray[np.float64], ...]:
    """By row and bin of confidence, [rows, BINS] each: tokens, sum of confidence, right ones."""
    place = np.minimum((table.confidence * BINS).astype(np.int64), BINS - 1)
    place += BINS * np.arange(len(place))[:, None]
    right = table.rank == 1
    weights = (np.ones_like(table.confidence), table.confidence, right.astype(np.float64))
    size = BINS * len(place)
    return tuple(np.bincount(place.ravel(), w.ravel(), size).reshape(-1, BINS).astype(np.float64) for w in weights)


def _calibration_error(table: TokenTable) -> Estimate:
    tokens, confidence, right = _bins(table)
    gap = confidence - right
    value, count = float(np.abs(gap.sum(0)).sum() / tokens.sum()), len(gap)
    if count < 2:
        return Estimate(value, None, count)
    draws = np.abs(resampling(count) @ gap).sum(1) / tokens.sum(1).mean()
    low, high = interval_of(draws, count)
    return Estimate(value, float(draws.std(ddof=1)), count, float(low), float(high))


def detail(
    table: TokenTable, corpus: Corpus, byte_lengths: NDArray[np.int64], domains: NDArray[np.int64], names: Sequence[str]
) -> dict[str, Any]:
    """Everything that one number does not say, as plain values for `distribution.json`.

    `domains` [rows, length] numbers the domain of each token among `names`. Keys: `by_domain`, `by_position` (eighths
    of a row), `by_class` (of the predicted token), `reliability` (bins of confidence), `ranks` (share of the targets at
    rank 1, 2, 3-4, 5-8, ...) and `forking`.
    """
    tokens = [str(token) for token in corpus.tokenizer.convert_ids_to_tokens(list(range(len(byte_lengths))))]
    classes = np.array([CLASSES.index(token_class(token, bool(size))) for token, size in zip(tokens, byte_lengths)])  # noqa: B905
    by_class = classes[table.targets]
    position = np.broadcast_to(np.arange(table.loss.shape[1]) * POSITIONS // table.loss.shape[1], table.loss.shape)
    threshold = float(np.quantile(table.entropy, 1 - FORKING_SHARE))
    forking = table.entropy > threshold
    counts, confidence, right = (part.sum(0) for part in _bins(table))
    commonest = Counter(table.targets[forking].tolist()).most_common(COMMONEST)
    octave = np.ceil(np.log2(table.rank)).astype(np.int64)
    return {
        "by_domain": _groups(table, byte_lengths, domains, names),
        "by_position": _groups(table, byte_lengths, position, [f"{i + 1}/{POSITIONS}" for i in range(POSITIONS)]),
        "by_class": _groups(table, byte_lengths, by_class, CLASSES),
        "reliability": [
            {"from": i / BINS, "tokens": int(n), "confidence": float(c / n), "right": float(r / n)}
            for i, (n, c, r) in enumerate(zip(counts, confidence, right, strict=True))
            if n
        ],
        "ranks": [
            {"from": 1 if o == 0 else 2 ** (o - 1) + 1, "to": 2**o, "share": float((octave == o).mean())}
            for o in range(int(octave.max()) + 1)
        ],
        "forking": {
            "threshold": threshold,
            "by_class": {name: float((by_class[forking] == i).mean()) for i, name in enumerate(CLASSES)},
            "tokens": [
                {
                    "token": corpus.tokenizer.decode([token]),
                    "count": count,
                    "entropy": float(table.entropy[forking & (table.targets == token)].mean()),
                }
                for token, count in commonest
            ],
        },
    }


def _groups(
    table: TokenTable, byte_lengths: NDArray[np.int64], group: NDArray[np.int64], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Tokens, perplexity, bits per byte, entropy and masses of each group of tokens that has any."""
    found = []
    for number, name in enumerate(names):
        inside = group == number
        if not inside.any():
            continue
        loss, size = table.loss[inside], int(byte_lengths[table.targets[inside]].sum())
        found.append(
            {
                "name": name,
                "tokens": int(inside.sum()),
                "perplexity": math.exp(loss.mean()),
                "bits_per_byte": float(loss.sum() / math.log(2) / size) if size else None,
                "entropy": float(table.entropy[inside].mean()),
                "top_1": float((table.rank[inside] == 1).mean()),
                "tail_mass": float(table.tail_mass[inside].mean()),
                **{f"head_mass@{k}": float(mass[inside].mean()) for k, mass in table.head_mass.items()},
            }
        )
    return found


CLASSES = ("word", "continuation", "digit", "space", "punctuation", "special")


def token_class(token: str, has_bytes: bool) -> str:
    """The class of a byte-level token, such as `Ġthe` (Ġ is a space): a `word` begins with a space and a letter, a
    `continuation` with a letter alone."""
    if not has_bytes:
        return "special"
    text = token.replace("Ġ", " ").replace("Ċ", "\n").replace("ĉ", "\t")
    first = text.strip()[:1]
    if not first:
        return "space"
    if first.isdigit():
        return "digit"
    if not first.isalpha():
        return "punctuation"
    return "word" if text[0].isspace() else "continuation"


def byte_lengths(corpus: Corpus) -> NDArray[np.int64]:
    """Bytes of each token of the byte-level tokenizer [V]; the special tokens have none."""
    tokens = corpus.tokenizer.convert_ids_to_tokens(list(range(len(corpus.tokenizer))))
    special = set(corpus.tokenizer.all_special_tokens)
    return np.array([0 if token in special else len(token) for token in tokens])  # a byte is a character there
