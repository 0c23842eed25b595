"""Distribution metrics against a plain forward pass in float64, and controls against what they promise."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.configuration.evaluation import BenchmarkConfig, EvaluationConfig
from pipelines.configuration.model import ModelConfig
from pipelines.data.corpus import Corpus
from pipelines.evaluation.distribution import TokenTable, matched_temperature, mean_entropy, tempered, token_table
from pipelines.evaluation.evaluate import Control, distribution, evaluate, text_rows
from pipelines.evaluation.piece_cache import Pieces
from pipelines.ledger import Ledger
from pipelines.models.causal_lm import build_model
from shaping.objective import Objective
from shaping.theory import stationary_distribution

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
    return text_rows(corpus, TEXT, LENGTH)[0]


def probabilities(model: Any, rows: Any) -> Any:
    with torch.no_grad():
        return model(torch.from_numpy(rows[:, :-1].astype(np.int64))).logits.double().softmax(-1).numpy()


def test_the_table_is_what_a_forward_pass_says(model: Any, rows: Any) -> None:
    p = probabilities(model, rows)
    table = token_table(model, rows, 8)
    own = np.take_along_axis(p, table.targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(table.loss, -np.log(own), rtol=1e-4)
    np.testing.assert_allclose(table.entropy, -(p * np.log(p.clip(1e-300))).sum(-1), rtol=1e-4, atol=1e-6)
    assert (table.rank > (p > own[..., None] * (1 + 1e-5)).sum(-1)).all()  # equal ones take turns
    assert (table.rank <= (p >= own[..., None] * (1 - 1e-5)).sum(-1)).all()
    np.testing.assert_allclose(table.confidence, p.max(-1), rtol=1e-5)
    ordered = -np.sort(-p, -1)
    for k, mass in table.head_mass.items():
        np.testing.assert_allclose(mass, ordered[..., :k].sum(-1), rtol=1e-5)
    assert set(table.head_mass) == {1, 4, 8, 16}
    np.testing.assert_allclose(table.tail_mass, ordered[..., 8:].sum(-1), rtol=1e-3, atol=1e-6)


def test_bits_per_byte_counts_the_bytes_of_the_text(corpus: Corpus, model: Any, rows: Any) -> None:
    table = token_table(model, rows, 8)
    sizes = distribution.byte_lengths(corpus)
    found = distribution.headline(table, 8, sizes)["bits_per_byte"]
    text = corpus.tokenizer.batch_decode(rows[:, 1:], skip_special_tokens=True)
    bytes_ = sum(len(corpus.tokenizer.backend_tokenizer.decode(row.tolist()).encode()) for row in rows[:, 1:])
    assert bytes_ >= sum(map(len, text))
    assert found.value == pytest.approx(table.loss.sum() / math.log(2) / bytes_, rel=0.01)
    assert found.low is not None
    assert found.low < found.value < found.high


def made_up(confidence: Any, right: Any) -> TokenTable:
    zeros = np.zeros_like(confidence)
    rank = np.where(right, 1, 5)
    return TokenTable(rank, zeros, zeros, rank, confidence, {1: confidence}, zeros)


def test_calibration_is_zero_where_confidence_is_truth_and_the_gap_where_it_is_not() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.02, 1, (500, 100))
    honest = made_up(confidence, rng.random(confidence.shape) < confidence)
    assert distribution.headline(honest, 1, np.ones(6, int))["calibration_error"].value < 0.01
    boastful = made_up(confidence, rng.random(confidence.shape) < 0.7 * confidence)
    found = distribution.headline(boastful, 1, np.ones(6, int))["calibration_error"]
    assert found.value == pytest.approx(0.3 * confidence.mean(), abs=0.01)
    assert found.low < found.value < found.high  # type: ignore[operator]


def test_details_add_up(corpus: Corpus, model: Any) -> None:
    rows, domains, names = text_rows(corpus, TEXT, LENGTH)
    assert {document.module.split(".")[0] for document in corpus.documents("test")} == set(names)
    table = token_table(model, rows, 8)
    sizes = distribution.byte_lengths(corpus)
    detail = distribution.detail(table, corpus, sizes, domains[:, 1:], names)
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
def test_classes_of_tokens(token: str, name: str) -> None:
    assert distribution.token_class(token, True) == name
    assert distribution.token_class("<|endoftext|>", False) == "special"


def test_documents_of_rows_are_their_own(corpus: Corpus) -> None:
    rows, documents = corpus.rows_with_documents("text", "test", LENGTH)
    texts = [d.training_text for d in corpus.documents("test")]
    for row, numbers in list(zip(rows, documents, strict=True))[::50]:
        for number in set(numbers.tolist()):
            part = corpus.tokenizer.decode(row[numbers == number], skip_special_tokens=True)
            assert part.strip("\ufffd") in texts[number]


@pytest.mark.parametrize("temperature", [0.3, 0.9, 1.7])
def test_the_matched_temperature_is_found(model: Any, rows: Any, temperature: float) -> None:
    """A tempered model has the entropy of itself at that temperature and no other."""
    entropy = token_table(model, rows, 8, tempered(temperature)).entropy.mean()
    assert matched_temperature(model, rows, entropy) == pytest.approx(temperature, rel=1e-3)
    found, slope = mean_entropy(model, rows, temperature)
    assert found == pytest.approx(entropy, rel=1e-5)
    near = [mean_entropy(model, rows, temperature * math.exp(h))[0] for h in (-1e-2, 1e-2)]
    assert slope == pytest.approx((near[1] - near[0]) / 2e-2, rel=1e-2)


def test_an_entropy_beyond_all_temperatures_is_refused(model: Any, rows: Any) -> None:
    with pytest.raises(
        ValueError, match=r"no temperature between 0\.1 and 10\.0 gives the model an entropy of 9\.0000 nats"
    ):
        matched_temperature(model, rows, 9.0)


def measured(model: Any, corpus: Corpus, folder: Any, control: Control, top_k: int = 8) -> dict[str, dict[str, Any]]:
    benchmarks = {"Text": TEXT, "Chains": BenchmarkConfig("sampled", "math", "chain3", items=6, samples=8)}
    if control.objective:
        del benchmarks["Chains"]
    config = EvaluationConfig("t", 0.7, 1.0, 6, {}, LENGTH, [2], benchmarks)
    with Ledger(folder) as ledger:
        outcome = evaluate(
            model, config, corpus, top_k, ledger, folder, Pieces(folder / "p", {"control": control.name}), control
        )
    assert all(row.get("variant", "") == control.name for row in outcome["measurements"])
    return {f"{row['benchmark']}/{row['metric']}": row for row in outcome["measurements"]}


def test_a_matched_control_is_tempered_in_text_and_in_sampling(corpus: Corpus, model: Any, tmp_path: Any) -> None:
    plain = measured(model, corpus, tmp_path, Control(""))
    cool = measured(model, corpus, tmp_path, Control("matched:precision", temperature=0.5))
    assert cool["Text/temperature"]["value"] == 0.5
    assert cool["Text/entropy"]["value"] < plain["Text/entropy"]["value"]
    assert cool["Text/top_1"]["value"] == plain["Text/top_1"]["value"]  # the order of the tokens stays
    from pipelines.evaluation.samples import SAMPLES, read_rows

    log_probs = np.mean([row["log_prob"] / row["length"] for row in read_rows(tmp_path / SAMPLES)])
    assert log_probs > -0.9 * plain["Text/entropy"]["value"]


@pytest.mark.parametrize("name", ["precision", "diversity"])
def test_a_theory_control_is_the_stationary_distribution(
    corpus: Corpus, model: Any, tmp_path: Any, rows: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On all tokens, where the estimate from a few has nothing left to estimate."""
    monkeypatch.setattr("pipelines.evaluation.evaluate.THEORY_TOKENS", rows.size)
    objective = Objective.named(name)
    found = measured(model, corpus, tmp_path, Control(f"theory:{name}", objective=objective))
    p = stationary_distribution(torch.from_numpy(probabilities(model, rows)).flatten(0, 1), objective)
    assert found["Text/entropy"]["value"] == pytest.approx(float(torch.special.entr(p).sum(-1).mean()), rel=1e-4)
    head = float(p.topk(8, -1).values.sum(-1).mean())
    assert found["Text/head_mass"]["value"] == pytest.approx(head, rel=1e-4)
    assert set(found) == {"Text/entropy", "Text/head_mass", "Text/tail_mass"}
