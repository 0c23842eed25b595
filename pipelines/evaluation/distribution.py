"""Statistics of a model's next-token distribution on held-out text: overall, by domain, position and class of token.

`token_table` runs the model and keeps a few numbers for each token; everything else is arithmetic on that table. A new
metric of held-out text is added in `headline`. Terms: bits per byte is the loss in bits divided by the bytes of the
predicted text, so it is comparable between tokenizers; the expected calibration error (Guo et al. 2017) is the mean
gap, over 15 bins of equal width weighted by their tokens, between the probability of the likeliest token and how often
it is right; forking tokens (Wang et al. 2025) are the fifth of the tokens whose distribution has the highest entropy.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
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
BATCH_LOGITS = 1 << 28
"""Logits of a batch: 1 GiB of float32. A row's logits are never divided."""
BINS = 15
"""Bins of confidence of the calibration error."""
HEADS = (1, 4, 16, 64, 256)
"""Head sizes whose mass is reported in addition to the data's k, if at most an eighth of the vocabulary."""
FORKING_SHARE = 0.2
POSITIONS = 8
"""Equal parts into which the positions of a row are divided."""
MOST_FREQUENT = 20
"""Forking tokens that are listed."""

Transform = Callable[[Tensor], Tensor]
"""Logits [N, V] -> logits [N, V] of the distribution to measure."""


def unchanged(logits: Tensor) -> Tensor:
    """The model's own distribution."""
    return logits


def tempered(temperature: float) -> Transform:
    """The model's distribution at a temperature."""
    return lambda logits: logits / temperature


@dataclass(frozen=True)
class TokenTable:
    """A few numbers for each predicted token of held-out text, each of shape [rows, length]."""

    targets: NDArray[np.int64]
    loss: NDArray[np.float64]
    """-log p of the token, nats."""
    entropy: NDArray[np.float64]
    """Of the predicted distribution, nats."""
    rank: NDArray[np.int64]
    """Of the token; the likeliest has rank 1."""
    confidence: NDArray[np.float64]
    """Probability of the likeliest token."""
    head_mass: dict[int, NDArray[np.float64]]
    """Size of the head -> its mass."""
    tail_mass: NDArray[np.float64]
    """Mass beyond the data's k."""


def token_table(
    model: PreTrainedModel, rows: NDArray[Any], top_k: int, *, transform: Transform = unchanged
) -> TokenTable:
    """Run `model` on rows [R, length + 1] of token ids. `top_k` is the data's k."""
    length = rows.shape[1] - 1
    vocabulary = model.config.vocab_size
    data_k = min(top_k, vocabulary)
    heads = sorted({data_k, *(k for k in HEADS if 8 * k <= vocabulary)})
    batches: list[Tensor] = []
    for batch, logits in _batches(model, rows):
        logits = transform(logits.flatten(0, 1))
        stats = token_statistics(logits, batch[:, 1:].flatten(), top_k)
        likeliest = logits.float().softmax(-1).topk(max(heads), -1).values
        masses = likeliest.cumsum(-1)
        columns = [
            -stats.target_log_probability,
            stats.entropy,
            stats.target_rank,
            likeliest[:, 0],
            stats.tail_mass,
            # the statistics' own mass at the data's k, which the training loss uses too
            *(stats.head_mass if k == data_k else masses[:, k - 1] for k in heads),
        ]
        # [columns, rows of the batch, length]
        batches.append(torch.stack([c.double() for c in columns], 0).view(len(columns), len(batch), length).cpu())
    loss, entropy, rank, confidence, tail_mass, *head_masses = torch.cat(batches, 1).numpy()
    return TokenTable(
        targets=rows[:, 1:].astype(np.int64),
        loss=loss,
        entropy=entropy,
        rank=rank.astype(np.int64),
        confidence=confidence,
        head_mass=dict(zip(heads, head_masses, strict=True)),
        tail_mass=tail_mass,
    )


def _batches(model: PreTrainedModel, rows: NDArray[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (tokens [B, length + 1], logits [B, length, V]) for batches of the rows."""
    size = max(1, min(BATCH_TOKENS, BATCH_LOGITS // model.config.vocab_size) // (rows.shape[1] - 1))
    with torch.inference_mode():
        for start in range(0, len(rows), size):
            batch = torch.from_numpy(rows[start : start + size].astype(np.int64)).to(model.device)
            yield batch, model(input_ids=batch[:, :-1]).logits


def mean_entropy(model: PreTrainedModel, rows: NDArray[Any], temperature: float = 1.0) -> tuple[float, float]:
    """Mean entropy of `model`, in nats per token, on rows [R, length + 1] at temperature T, and its slope in log T.

    dH / d log T = Var_p(z / T), the variance of the scaled logits under the tempered distribution.
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


LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.1, 10.0
TOLERANCE = 1e-5
"""Largest difference, in nats, between a matched entropy and the one it should match."""


def matched_temperature(model: PreTrainedModel, rows: NDArray[Any], entropy: float) -> float:
    """The temperature between 0.1 and 10 at which the mean entropy of `model` on rows [R, length + 1] is `entropy`.

    Entropy increases with temperature, so this is Newton's method in log T, starting at T = 1, with bisection where a
    step leaves the interval. Raises `ValueError` if no temperature between 0.1 and 10 gives the entropy.
    """
    low, high, log_temperature = math.log(LOWEST_TEMPERATURE), math.log(HIGHEST_TEMPERATURE), 0.0
    while high - low > 1e-7:
        current, slope = mean_entropy(model, rows, math.exp(log_temperature))
        if abs(current - entropy) < TOLERANCE:
            return math.exp(log_temperature)
        low, high = (log_temperature, high) if current < entropy else (low, log_temperature)
        step = log_temperature - (current - entropy) / max(slope, 1e-9)
        log_temperature = step if low < step < high else (low + high) / 2
    raise ValueError(
        f"no temperature between {LOWEST_TEMPERATURE} and {HIGHEST_TEMPERATURE} gives the model an entropy of "
        f"{entropy:.4f} nats"
    )


def headline(table: TokenTable, top_k: int, byte_lengths: NDArray[np.int64]) -> dict[str, Estimate]:
    """The metrics of the whole text; a new one is added here.

    Errors are over rows, which are long enough to be independent. `byte_lengths` [V] are those of `byte_lengths`.
    """
    # Perplexity is exp of the mean loss: its error follows by linearisation, its interval from that of the loss.
    loss = estimate(table.loss.mean(1), fractions=False)
    count = len(table.loss)
    perplexity = _perplexity(loss.value)
    interval = (
        (None, None) if loss.low is None or loss.high is None else (_perplexity(loss.low), _perplexity(loss.high))
    )
    return {
        "perplexity": Estimate(perplexity, loss.stderr and perplexity * loss.stderr, count, *interval),
        "entropy": estimate(table.entropy.mean(1), fractions=False),
        "head_mass": estimate(table.head_mass[min(top_k, max(table.head_mass))].mean(1)),
        "tail_mass": estimate(table.tail_mass.mean(1)),
        "bits_per_byte": _ratio(table.loss.sum(1) / math.log(2), byte_lengths[table.targets].sum(1)),
        "top_1": estimate((table.rank == 1).mean(1)),
        "calibration_error": _calibration_error(table),
        **{f"head_mass@{k}": estimate(mass.mean(1)) for k, mass in table.head_mass.items()},
    }


def _perplexity(loss: float) -> float:
    """exp of a mean loss in nats; infinite from 709 nats on, where `math.exp` would raise an error."""
    return math.exp(loss) if loss < 709 else math.inf


def _ratio(numerators: NDArray[np.float64], denominators: NDArray[np.int64]) -> Estimate:
    """The ratio of two sums over rows, with its error by linearisation and its interval by resampling rows."""
    value, count = float(numerators.sum() / max(1, denominators.sum())), len(numerators)
    if count < 2:
        return Estimate(value, None, count)
    # The residuals of the rows have mean 0, and their error is that of the ratio.
    _, error = mean_and_error((numerators - value * denominators) / denominators.mean())
    weights = resampling(count)
    low, high = interval_of((weights @ numerators) / (weights @ denominators), count)
    return Estimate(value, error, count, float(low), float(high))


def _bins(table: TokenTable) -> tuple[NDArray[np.float64], ...]:
    """For each row and bin of confidence, [rows, BINS]: the tokens, their sum of confidence, and the right ones."""
    count = len(table.confidence)
    bins = np.minimum((table.confidence * BINS).astype(np.int64), BINS - 1)
    bins += BINS * np.arange(count)[:, None]  # numbered across rows, so that one bincount counts them all
    right = table.rank == 1
    weights = (np.ones_like(table.confidence), table.confidence, right.astype(np.float64))
    return tuple(
        np.bincount(bins.ravel(), w.ravel(), BINS * count).reshape(-1, BINS).astype(np.float64) for w in weights
    )


def _calibration_error(table: TokenTable) -> Estimate:
    """The expected calibration error, with its error and interval by resampling rows."""
    # The gap of each bin adds up over the rows of a bootstrap sample before its absolute value is taken.
    tokens, confidence, right = _bins(table)
    gap = confidence - right
    value, count = float(np.abs(gap.sum(0)).sum() / tokens.sum()), len(gap)
    if count < 2:
        return Estimate(value, None, count)
    draws = np.abs(resampling(count) @ gap).sum(1) / tokens.sum(1).mean()
    low, high = interval_of(draws, count)
    return Estimate(value, float(draws.std(ddof=1)), count, float(low), float(high))


def detail(
    table: TokenTable,
    corpus: Corpus,
    byte_lengths: NDArray[np.int64],
    *,
    domains: NDArray[np.int64],
    domain_names: Sequence[str],
) -> dict[str, Any]:
    """Statistics that do not fit into one number, as plain values for `distribution.json`.

    `domains` [rows, length] are indices into `domain_names`. Keys: `by_domain`, `by_position` (eighths of a row),
    `by_class` (of the predicted token), `reliability` (bins of confidence), `ranks` (share of the targets at rank 1, 2,
    3-4, 5-8, ...) and `forking`.
    """
    # The class of each token of the vocabulary [V], then of each predicted token [rows, length].
    tokens = [str(token) for token in corpus.tokenizer.convert_ids_to_tokens(list(range(len(byte_lengths))))]
    classes = np.array([CLASSES.index(token_class(token, bool(size))) for token, size in zip(tokens, byte_lengths)])  # noqa: B905
    by_class = classes[table.targets]

    length = table.loss.shape[1]
    positions = np.broadcast_to(np.arange(length) * POSITIONS // length, table.loss.shape)
    position_names = [f"{i + 1}/{POSITIONS}" for i in range(POSITIONS)]
    counts, confidence, right = (column.sum(0) for column in _bins(table))
    octaves = np.ceil(np.log2(table.rank)).astype(np.int64)
    return {
        "by_domain": _groups(table, byte_lengths, indices=domains, names=domain_names),
        "by_position": _groups(table, byte_lengths, indices=positions, names=position_names),
        "by_class": _groups(table, byte_lengths, indices=by_class, names=CLASSES),
        "reliability": [
            {"from": i / BINS, "tokens": int(n), "confidence": float(c / n), "right": float(r / n)}
            for i, (n, c, r) in enumerate(zip(counts, confidence, right, strict=True))
            if n
        ],
        "ranks": [
            {"from": 1 if o == 0 else 2 ** (o - 1) + 1, "to": 2**o, "share": float((octaves == o).mean())}
            for o in range(int(octaves.max()) + 1)
        ],
        "forking": _forking(table, corpus, by_class),
    }


def _forking(table: TokenTable, corpus: Corpus, by_class: NDArray[np.int64]) -> dict[str, Any]:
    """The forking tokens: their threshold of entropy, their classes, and the most frequent ones."""
    threshold = float(np.quantile(table.entropy, 1 - FORKING_SHARE))
    forking = table.entropy > threshold
    most_frequent = Counter(table.targets[forking].tolist()).most_common(MOST_FREQUENT)
    return {
        "threshold": threshold,
        "by_class": {name: float((by_class[forking] == i).mean()) for i, name in enumerate(CLASSES)},
        "tokens": [
            {
                "token": corpus.tokenizer.decode([token]),
                "count": count,
                "entropy": float(table.entropy[forking & (table.targets == token)].mean()),
            }
            for token, count in most_frequent
        ],
    }


def _groups(
    table: TokenTable, byte_lengths: NDArray[np.int64], *, indices: NDArray[np.int64], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Tokens, perplexity, bits per byte, entropy and masses of each group that has tokens.

    `indices` [rows, length] are the groups of the tokens, as indices into `names`.
    """
    groups = []
    for index, name in enumerate(names):
        inside = indices == index
        if not inside.any():
            continue
        loss, size = table.loss[inside], int(byte_lengths[table.targets[inside]].sum())
        groups.append(
            {
                "name": name,
                "tokens": int(inside.sum()),
                "perplexity": _perplexity(loss.mean()),
                "bits_per_byte": float(loss.sum() / math.log(2) / size) if size else None,
                "entropy": float(table.entropy[inside].mean()),
                "top_1": float((table.rank[inside] == 1).mean()),
                "tail_mass": float(table.tail_mass[inside].mean()),
                **{f"head_mass@{k}": float(mass[inside].mean()) for k, mass in table.head_mass.items()},
            }
        )
    return groups


CLASSES = ("word", "continuation", "digit", "space", "punctuation", "special")


def token_class(token: str, has_bytes: bool) -> str:
    """The class of a byte-level token, such as `Ġthe`, where Ġ is a space.

    A `word` begins with a space and a letter, a `continuation` with a letter.
    """
    if not has_bytes:
        return "special"
    # Byte-level tokens write space, newline and tab as these letters.
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
    """Bytes [V] of each token of the byte-level tokenizer; 0 for special tokens."""
    tokens = corpus.tokenizer.convert_ids_to_tokens(list(range(len(corpus.tokenizer))))
    special = set(corpus.tokenizer.all_special_tokens)
    # Byte-level tokens have one character for each byte.
    return np.array([0 if token in special else len(token) for token in tokens])
