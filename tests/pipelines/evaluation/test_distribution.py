"""Distribution metrics against a plain forward pass in float64, and controls against their definitions."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.configuration.evaluation import BenchmarkConfig, EvaluationConfig
from pipelines.configuration.model import ModelConfig
from pipelines.data.corpus import Corpus
from pipelines.evaluation import distribution
from pipelines.evaluation.benchmark_cache import BenchmarkCache
from pipelines.evaluation.context import UNCHANGED, Control
from pipelines.evaluation.distribution import TokenTable, matched_temperature, mean_entropy, tempered, token_table
from pipelines.evaluation.evaluate import evaluate
from pipelines.evaluation.held_out_text import held_out_rows
from pipelines.evaluation.samples import SAMPLES, read_rows
from pipelines.models.causal_lm import build_model, save_checkpoint
from pipelines.stages import _control
from shaping.objective import Objective
from shaping.theory import stationary_distribution
from tests.pipelines.evaluation.contexts import evaluation_context

TEXT = BenchmarkConfig("text", "text", "text", items=10)
LENGTH = 24


@pytest.fixture(scope="module")
def model(corpus: Corpus) -> Any:
    model = build_model(ModelConfig("t", 1, 16, 32, 2, 1, 8), corpus.tokenizer, 1e4, seed=0).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(30)
    return model


@pytest.fixture(scope="module")
def rows(corpus: Corpus) -> Any:
    return held_out_rows(corpus, TEXT, LENGTH).tokens


def probabilities(model: Any, rows: Any) -> Any:
    with torch.no_grad():
        return model(torch.from_numpy(rows[:, :-1].astype(np.int64))).logits.double().softmax(-1).numpy()


def test_the_table_equals_a_forward_pass(model: Any, rows: Any) -> None:
    p = probabilities(model, rows)
    table = token_table(model, rows, 8)
    target_p = np.take_along_axis(p, table.targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(table.loss, -np.log(target_p), rtol=1e-4)
    np.testing.assert_allclose(table.entropy, -(p * np.log(p.clip(1e-300))).sum(-1), rtol=1e-4, atol=1e-6)
    assert (table.rank > (p > target_p[..., None] * (1 + 1e-5)).sum(-1)).all()  # ties may have any order
    assert (table.rank <= (p >= target_p[..., None] * (1 - 1e-5)).sum(-1)).all()
    np.testing.assert_allclose(table.confidence, p.max(-1), rtol=1e-5)
    ordered = -np.sort(-p, -1)
    for k, mass in table.head_mass.items():
        np.testing.assert_allclose(mass, ordered[..., :k].sum(-1), rtol=1e-5)
    assert set(table.head_mass) == {1, 4, 8, 16}
    np.testing.assert_allclose(table.tail_mass, ordered[..., 8:].sum(-1), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("scale", [30, 1000])
def test_losses_are_finite_where_probabilities_underflow(corpus: Corpus, model: Any, rows: Any, scale: float) -> None:
    """Logits hundreds or thousands apart, so that most targets have probability 0 in float32."""
    model = copy.deepcopy(model)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight * scale)
    table = token_table(model, rows, 8)
    with torch.no_grad():
        logits = model(torch.from_numpy(rows[:, :-1].astype(np.int64))).logits.double()
    expected = -logits.log_softmax(-1).numpy()
    expected = np.take_along_axis(expected, table.targets[..., None], -1)[..., 0]
    assert np.median(expected) > 104
    np.testing.assert_allclose(table.loss, expected, rtol=1e-5, atol=1e-3)
    perplexity = distribution.headline(table, 8, distribution.byte_lengths(corpus))["perplexity"].value
    assert perplexity == (pytest.approx(math.exp(expected.mean()), rel=1e-2) if expected.mean() < 709 else math.inf)


def test_bits_per_byte_counts_the_bytes_of_the_text(corpus: Corpus, model: Any, rows: Any) -> None:
    table = token_table(model, rows, 8)
    sizes = distribution.byte_lengths(corpus)
    metric = distribution.headline(table, 8, sizes)["bits_per_byte"]
    text = corpus.tokenizer.batch_decode(rows[:, 1:], skip_special_tokens=True)
    bytes_ = sum(len(corpus.tokenizer.backend_tokenizer.decode(row.tolist()).encode()) for row in rows[:, 1:])
    assert bytes_ >= sum(map(len, text))
    assert metric.value == pytest.approx(table.loss.sum() / math.log(2) / bytes_, rel=0.01)
    assert metric.low is not None
    assert metric.low < metric.value < metric.high


def artificial_table(confidence: Any, right: Any) -> TokenTable:
    zeros = np.zeros_like(confidence)
    rank = np.where(right, 1, 5)
    return TokenTable(rank, zeros, zeros, rank, confidence, {1: confidence}, zeros)


def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.02, 1, (500, 100))
    calibrated = artificial_table(confidence, rng.random(confidence.shape) < confidence)
    assert distribution.headline(calibrated, 1, np.ones(6, int))["calibration_error"].value < 0.01
    overconfident = artificial_table(confidence, rng.random(confidence.shape) < 0.7 * confidence)
    metric = distribution.headline(overconfident, 1, np.ones(6, int))["calibration_error"]
    assert metric.value == pytest.approx(0.3 * confidence.mean(), abs=0.01)
    assert metric.low < metric.value < metric.high  # type: ignore[operator]


def test_the_details_of_two_rows_by_hand(corpus: Corpus) -> None:
    """Of losses 0, 1/8, ..., 31/8 of one token of three bytes, with twice the entropy."""
    loss = np.arange(32.0).reshape(2, 16) / 8
    rank = np.tile([1, 2, 3, 4, 5, 8, 9, 16], 4).reshape(2, 16)
    quarter = np.full(loss.shape, 0.25)
    table = TokenTable(np.full(loss.shape, 40), loss, 2 * loss, rank, quarter, {4: quarter}, 3 * quarter)
    domains, sizes = np.zeros(loss.shape, int), np.full(len(corpus.tokenizer), 3)
    detail = distribution.detail(table, corpus, sizes, domains=domains, domain_names=["a"])
    first, second = detail["by_position"][:2]
    assert [(part["name"], part["tokens"]) for part in detail["by_position"]] == [(f"{i}/8", 4) for i in range(1, 9)]
    assert (first["top_1"], second["top_1"]) == (0.5, 0.0)
    # Losses of the third and fourth tokens of both rows: 2/8, 3/8, 18/8 and 19/8.
    expected = {"perplexity": math.exp(1.3125), "bits_per_byte": 5.25 / math.log(2) / 12, "entropy": 2.625}
    expected |= {"tail_mass": 0.75, "head_mass@4": 0.25}
    assert {key: second[key] for key in expected} == pytest.approx(expected)
    bounds = [(1, 1, 1 / 8), (2, 2, 1 / 8), (3, 4, 1 / 4), (5, 8, 1 / 4), (9, 16, 1 / 4)]
    assert [(bar["from"], bar["to"], bar["share"]) for bar in detail["ranks"]] == bounds
    # The highest fifth of 32 entropies are those of the last 7 tokens.
    assert detail["forking"]["threshold"] == pytest.approx(24.8 / 4)
    assert [(row["count"], row["entropy"]) for row in detail["forking"]["tokens"]] == [(7, 7.0)]


def test_the_token_that_ends_a_text_has_no_bytes(corpus: Corpus) -> None:
    sizes = distribution.byte_lengths(corpus)
    assert sizes[corpus.tokenizer.eos_token_id] == 0
    assert sizes[corpus.tokenizer.encode(" é", add_special_tokens=False)].sum() == 3


def test_the_groups_of_the_details_add_up_to_the_whole(corpus: Corpus, model: Any) -> None:
    rows = held_out_rows(corpus, TEXT, LENGTH)
    assert {document.module.split(".")[0] for document in corpus.documents("test")} == set(rows.domain_names)
    table = token_table(model, rows.tokens, 8)
    sizes = distribution.byte_lengths(corpus)
    detail = distribution.detail(table, corpus, sizes, domains=rows.domains[:, 1:], domain_names=rows.domain_names)
    for key in ("by_domain", "by_position", "by_class"):
        assert sum(group["tokens"] for group in detail[key]) == table.loss.size
        weighted = sum(group["tokens"] * math.log(group["perplexity"]) for group in detail[key])
        assert weighted / table.loss.size == pytest.approx(table.loss.mean())
    assert sum(bar["share"] for bar in detail["ranks"]) == pytest.approx(1)
    share = [bar["share"] for bar in detail["ranks"] if bar["from"] == 3]
    assert share == [pytest.approx(np.isin(table.rank, (3, 4)).mean())]
    assert sum(part["tokens"] for part in detail["reliability"]) == table.loss.size
    forking = table.entropy > detail["forking"]["threshold"]
    assert forking.mean() == pytest.approx(0.2, abs=0.01)
    assert sum(detail["forking"]["by_class"].values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("token", "name"),
    [("Ġthe", "word"), ("ing", "continuation"), ("Ġ7", "digit"), ("7", "digit"), ("ĊĊ", "space"), ("Ġ", "space"),
     ("(", "punctuation"), ("Ġ+", "punctuation"), ("ĠĠĠx", "word")],
)  # fmt: skip
def test_token_classes(token: str, name: str) -> None:
    assert distribution.token_class(token, True) == name
    assert distribution.token_class("<|endoftext|>", False) == "special"


def test_each_token_of_a_row_belongs_to_its_document(corpus: Corpus) -> None:
    rows, documents = corpus.rows_with_documents("text", "test", LENGTH)
    texts = [d.training_text for d in corpus.documents("test")]
    for row, numbers in list(zip(rows, documents, strict=True))[::50]:
        for number in set(numbers.tolist()):
            part = corpus.tokenizer.decode(row[numbers == number], skip_special_tokens=True)
            assert part.strip("\ufffd") in texts[number]


@pytest.mark.parametrize("temperature", [0.3, 0.9, 1.7])
def test_matched_temperature_inverts_the_entropy(model: Any, rows: Any, temperature: float) -> None:
    """The entropy of a tempered model is matched at its temperature only."""
    entropy = token_table(model, rows, 8, transform=tempered(temperature)).entropy.mean()
    assert matched_temperature(model, rows, entropy) == pytest.approx(temperature, rel=1e-3)
    mean, slope = mean_entropy(model, rows, temperature)
    assert mean == pytest.approx(entropy, rel=1e-5)
    near = [mean_entropy(model, rows, temperature * math.exp(h))[0] for h in (-1e-2, 1e-2)]
    assert slope == pytest.approx((near[1] - near[0]) / 2e-2, rel=1e-2)


def test_an_entropy_that_no_temperature_gives_is_refused(model: Any, rows: Any) -> None:
    with pytest.raises(
        ValueError, match=r"no temperature between 0\.1 and 10\.0 gives the model an entropy of 9\.0000 nats"
    ):
        matched_temperature(model, rows, 9.0)


def measure(corpus: Corpus, model: Any, folder: Any, *, control: Control) -> dict[str, dict[str, Any]]:
    """The measurements under a control, by benchmark/metric."""
    benchmarks = {"Text": TEXT, "Chains": BenchmarkConfig("sampled", "math", "chain3", items=6, samples=8)}
    if control.objective:
        del benchmarks["Chains"]
    config = EvaluationConfig("t", 0.7, 1.0, 6, {}, LENGTH, [2], benchmarks)
    cache = BenchmarkCache(folder / "cache", {"control": control.name})
    with evaluation_context(corpus, folder, config, model=model, cache=cache, control=control) as context:
        outcome = evaluate(context)
    assert all(row.get("variant", "") == control.name for row in outcome["measurements"])
    return {f"{row['benchmark']}/{row['metric']}": row for row in outcome["measurements"]}


def test_a_matched_control_is_tempered_in_text_and_in_sampling(corpus: Corpus, model: Any, tmp_path: Any) -> None:
    plain = measure(corpus, model, tmp_path, control=UNCHANGED)
    cool = measure(corpus, model, tmp_path, control=Control("matched:precision", temperature=0.5))
    assert cool["Text/temperature"]["value"] == 0.5
    assert cool["Text/entropy"]["value"] < plain["Text/entropy"]["value"]
    assert cool["Text/top_1"]["value"] == plain["Text/top_1"]["value"]  # the order of the tokens does not change
    log_probs = np.mean([row["log_prob"] / row["length"] for row in read_rows(tmp_path / SAMPLES)])
    assert log_probs > -0.9 * plain["Text/entropy"]["value"]


@pytest.mark.parametrize("name", ["precision", "diversity"])
def test_a_theory_control_is_the_stationary_distribution(
    corpus: Corpus, model: Any, tmp_path: Any, rows: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For all tokens, so that the estimate from a few of them is exact."""
    monkeypatch.setattr("pipelines.evaluation.held_out_text.THEORY_TOKENS", rows.size)
    objective = Objective.named(name)
    measurements = measure(corpus, model, tmp_path, control=Control(f"theory:{name}", objective=objective))
    p = stationary_distribution(torch.from_numpy(probabilities(model, rows)).flatten(0, 1), objective)
    assert measurements["Text/entropy"]["value"] == pytest.approx(float(torch.special.entr(p).sum(-1).mean()), rel=1e-4)
    head = float(p.topk(8, -1).values.sum(-1).mean())
    assert measurements["Text/head_mass"]["value"] == pytest.approx(head, rel=1e-4)
    assert set(measurements) == {"Text/entropy", "Text/head_mass", "Text/tail_mass"}


def text_table(*, loss: Any, right: Any = True, confidence: float = 0.5) -> TokenTable:
    """A table whose tokens are 0 where they are right, and else 1."""
    loss = np.asarray(loss, dtype=float)
    rank = np.where(np.broadcast_to(right, loss.shape), 1, 2)
    same = np.full(loss.shape, confidence)
    return TokenTable(rank - 1, loss, loss, rank, same, {1: same}, 1 - same)


def test_the_error_of_perplexity_is_that_of_its_loss_times_perplexity() -> None:
    """Row means of 1, 2 and 3 nats: 2 with an error of 1 / sqrt(3)."""
    table = text_table(loss=[[0.5, 1.5], [2.0, 2.0], [1.0, 5.0]])
    metric = distribution.headline(table, 1, np.array([1, 1]))["perplexity"]
    assert metric.value == pytest.approx(math.exp(2))
    assert metric.stderr == pytest.approx(math.exp(2) / math.sqrt(3))


def test_the_interval_of_entropy_is_not_one_of_fractions() -> None:
    """Row means of 1, 2 and 3 nats."""
    table = text_table(loss=[[0.5, 1.5], [2.0, 2.0], [1.0, 5.0]])
    metric = distribution.headline(table, 1, np.array([1, 1]))["entropy"]
    assert metric.low is not None
    assert metric.high is not None
    assert metric.low < metric.value == 2.0 < metric.high


def test_the_error_of_bits_per_byte_is_that_of_a_ratio() -> None:
    """2 bits in 2 bytes and 9 bits in 6: the residuals from 11/8 bits a byte are -3/4 and 3/4, for 4 bytes a row."""
    table = text_table(loss=math.log(2) * np.array([[1.0, 1.0], [4.0, 5.0]]), right=[[True] * 2, [False] * 2])
    metric = distribution.headline(table, 1, np.array([1, 3]))["bits_per_byte"]
    assert metric.value == pytest.approx(11 / 8)
    assert metric.stderr == pytest.approx(0.75 / 4)


def test_the_error_of_the_calibration_error_is_that_of_a_mean_over_rows() -> None:
    """With one bin, of confidence 0.9, the gap is 0.9 minus the mean of the rows' shares of right tokens."""
    counts = np.random.default_rng(0).integers(20, 60, 100)
    right, shares = np.arange(100) < counts[:, None], counts / 100
    table = text_table(loss=np.ones((100, 100)), right=right, confidence=0.9)
    metric = distribution.headline(table, 1, np.array([1, 1]))["calibration_error"]
    error = shares.std(ddof=1) / 10
    assert metric.value == pytest.approx(0.9 - shares.mean())
    assert metric.stderr == pytest.approx(error, rel=0.06)
    assert metric.high - metric.low == pytest.approx(2 * 1.984 * error, rel=0.06)  # type: ignore[operator]


def test_the_error_of_a_theory_control_has_both_parts(
    corpus: Corpus, model: Any, tmp_path: Path, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the model's mean over rows, and that of the mean change over the computed tokens, which are all here."""
    monkeypatch.setattr("pipelines.evaluation.held_out_text.THEORY_TOKENS", rows.size)
    objective = Objective(beta=2.0)
    measurements = measure(corpus, model, tmp_path, control=Control("theory:x", objective=objective))
    q = torch.from_numpy(probabilities(model, rows))
    own = torch.special.entr(q).sum(-1)
    change = torch.special.entr(stationary_distribution(q.flatten(0, 1), objective)).sum(-1) - own.flatten()
    errors = [values.std().item() / math.sqrt(len(values)) for values in (own.mean(1), change)]
    assert measurements["Text/entropy"]["stderr"] == pytest.approx(math.hypot(*errors), rel=1e-3)


def test_a_matched_control_has_the_entropy_of_its_reference_at_every_length(
    corpus: Corpus, model: Any, tmp_path: Path
) -> None:
    """With the temperatures of both lengths in one cache; the reference is the model with sharper logits."""
    sharp = copy.deepcopy(model)
    with torch.no_grad():
        sharp.model.norm.weight.mul_(1.5)
    save_checkpoint(sharp, corpus.tokenizer, tmp_path / "reference" / "checkpoints" / "step-1")
    variant = {"name": "matched:x", "reference": {"checkpoint": "step-1"}}
    temperatures = []
    for length in (LENGTH, 8):
        config = EvaluationConfig("t", 1.0, 1.0, 6, {}, length, [2], {"Text": TEXT})
        with evaluation_context(corpus, tmp_path / "run", config, model=model) as context:
            stage = replace(context.stage, reference=tmp_path / "reference")
            control = _control(replace(context, stage=stage), variant)
        tokens = held_out_rows(corpus, TEXT, length).tokens
        entropy = mean_entropy(sharp, tokens)[0]
        assert control.name == "matched:x"
        assert mean_entropy(model, tokens, control.temperature)[0] == pytest.approx(entropy, abs=1e-4)
        temperatures.append(control.temperature)
    assert temperatures[0] != temperatures[1]
    assert max(temperatures) < 0.9


def test_a_predicted_token_is_of_its_own_domain(
    corpus: Corpus, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not of that of the token before it: the first of each row, the only ones of domain b, are not predicted."""
    rows = held_out_rows(corpus, TEXT, LENGTH)
    domains = np.zeros(rows.tokens.shape, int)
    domains[:, 0] = 1
    changed = rows._replace(domains=domains, domain_names=["a", "b"])
    monkeypatch.setattr("pipelines.evaluation.held_out_text.held_out_rows", lambda *_: changed)
    measure(corpus, model, tmp_path, control=UNCHANGED)
    detail = json.loads((tmp_path / "distribution.json").read_text())["Text"]
    assert [(part["name"], part["tokens"]) for part in detail["by_domain"]] == [("a", rows.tokens[:, 1:].size)]
