"""Claims: the paper's numbers give the paper's verdicts, stores with known effects give theirs, mistakes are named."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.claim_language import parse
from analysis.claim_sources import PaperSource, StudySource, _matrix
from analysis.claims import applicable, exit_code, judge, read_claims, sentences
from analysis.study import NotMeasured, read_study
from pipelines.errors import UserError
from pipelines.evaluation.samples import SAMPLES, write_rows
from sweeps.plan.planner import plan
from sweeps.store.stage_runs import Store
from tests.analysis.conftest import Measured, composed, write_run
from tests.published import publish

SEEDS = ["+sweep=nano", "seed=1,2,3,4,5"]


def verdicts_of(graph: object, store: object, path: Path | None = None) -> dict[str, str]:
    source = StudySource(read_study(graph, store))  # type: ignore[arg-type]
    return {verdict.claim.name: verdict.verdict for verdict in judge(read_claims(path), source)}


def numbers(advantage: dict[str, float], entropy: dict[str, float]) -> Callable[..., float]:
    """Numbers with a small spread over seeds around a level for each setting."""

    def number(measured: Measured) -> float:
        key = [measured.seed, len(measured.objective), measured.step, len(measured.benchmark)]
        noise = np.random.default_rng(key).normal(0, 0.002)
        if measured.metric == "entropy":
            return 2.0 + entropy.get(measured.objective, 0.0) + noise
        if measured.metric == "perplexity":
            return 40.0 + 40 * noise
        return 0.5 + advantage.get(measured.objective, 0.0) + noise

    return number


ORDERED = {"precision": -0.3, "ce": 0.0, "diversity": 0.3, "tail_penalty": 0.0, "head_reward": 0.0}


def test_the_papers_numbers_give_the_papers_verdicts() -> None:
    verdicts = {v.claim.name: v.verdict for v in judge(applicable(read_claims(), PaperSource()), PaperSource())}
    assert verdicts == {
        "entropy-not-perplexity": "undecided",  # the numbers of its curves are not known
        "beta-orders-entropy": "undecided",
        "precision-grows-with-size": "supported",  # +0.49 on the 4B, +0.78 on the 10B
        "precision-after-rl": "supported",
        "tail-penalty-after-rl": "supported",
        "entropy-collapse": "undecided",
    }
    (growth,) = next(
        v for v in judge(read_claims(), PaperSource()) if v.claim.name == "precision-grows-with-size"
    ).comparisons
    assert growth.estimate is not None
    assert growth.estimate.value == pytest.approx((44.89 - 44.11) - (43.11 - 42.62))
    assert "no interval" in growth.evidence


def test_effects_in_the_store_are_supported(make_store: Callable) -> None:
    verdicts = verdicts_of(*make_store(SEEDS, number=numbers({"tail_penalty": 0.1}, ORDERED)))
    assert verdicts["beta-orders-entropy"] == "supported"
    assert verdicts["entropy-not-perplexity"] == "supported"
    assert verdicts["tail-penalty-after-rl"] == "supported"
    assert verdicts["precision-grows-with-size"] == "undecided"  # one model only


def test_opposite_effects_are_contradicted(make_store: Callable) -> None:
    reverse = {name: -value for name, value in ORDERED.items()}
    verdicts = verdicts_of(*make_store(SEEDS, number=numbers({"tail_penalty": -0.1, "precision": -0.1}, reverse)))
    assert verdicts["beta-orders-entropy"] == "contradicted"
    assert verdicts["tail-penalty-after-rl"] == "contradicted"
    assert verdicts["precision-after-rl"] == "contradicted"


def test_one_seed_decides_nothing(make_store: Callable) -> None:
    graph, store = make_store(["+sweep=nano"], number=numbers({"tail_penalty": 0.4}, ORDERED))
    assert set(verdicts_of(graph, store).values()) == {"undecided"}
    claims = judge(read_claims(), StudySource(read_study(graph, store)))
    assert any("one seed decides nothing" in c.evidence for v in claims for c in v.comparisons)


def test_missing_stage_runs_are_named(make_store: Callable) -> None:
    graph, store = make_store(SEEDS, leave_out=lambda run: run.stage == "grpo" or run.checkpoint == "step-000020")
    (claim,) = [
        v
        for v in judge(read_claims(), StudySource(read_study(graph, store)))
        if v.claim.name == "tail-penalty-after-rl"
    ]
    assert "is not measured; it waits for grpo/" in claim.comparisons[0].evidence


def test_undecided_says_how_many_more_seeds(make_store: Callable) -> None:
    graph, store = make_store(SEEDS)
    claims = judge(read_claims(), StudySource(read_study(graph, store)))
    assert any("more" in c.evidence and "80 % power" in c.evidence for v in claims for c in v.comparisons)


def test_problems_are_read_from_samples(make_store: Callable) -> None:
    """Problems are resampled if their samples were kept and give the measured value."""
    graph, store = make_store(
        ["objective=ce", "seed=1,2"], number=lambda measured: 1 / 3 if measured.seed == 1 else 1 / 3 + 1e-9
    )
    for run in graph.runs.values():
        if run.checkpoint == "step-000020":
            rows = [
                {"benchmark": "Chain-3", "question": f"q{q}", "reward": float((q + s) % 3 == 0)}
                for q in range(6)
                for s in range(8)
            ]
            folder = store.root / "evaluate" / run.signature
            write_rows(folder / SAMPLES, rows)
            publish(folder)
    source = StudySource(read_study(graph, store))
    ((parsed,),) = [parse('value("ce", benchmark="Chain-3", metric="avg") > 0', "c")]
    (term,) = parsed.terms
    ((name, values, _),) = source.quantity(term, "nano").parts
    assert name == "Chain-3"
    assert values is not None
    assert values.shape == (2, 6)
    assert values[0] == pytest.approx(100 * np.array([[(q + s) % 3 == 0 for s in range(8)] for q in range(6)]).mean(1))


def test_claims_from_a_users_file(make_store: Callable, tmp_path: Path) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text(
        "claims:\n- name: control\n  statement: precision is more than a temperature\n"
        '  holds: value("precision", at="first") > value("ce", at="first", variant="matched:precision")\n'
        '- name: half\n  statement: all above forty\n  holds: [\'40 < value("ce", metric="avg") < 60\']\n'
    )
    graph, store = make_store(SEEDS, number=numbers({"precision": 0.2}, ORDERED))
    for run in graph.runs.values():
        if run.stage == "evaluate" and run.labels["objective"] == "ce" and "Modules" in str(run.config):
            folder = store.root / "evaluate" / run.signature
            rows = json.loads((folder / "result.json").read_text())["measurements"]
            controls = [{**row, "variant": "matched:precision", "value": 0.55} for row in rows if "@" in row["metric"]]
            write_run(store, run, measurements=rows + controls)
    assert verdicts_of(graph, store, path) == {"control": "supported", "half": "supported"}


def test_the_source_and_family_of_a_claim_are_read(tmp_path: Path) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text(
        "claims:\n- {name: one, statement: s, source: table 9, family: own, holds: 'value(\"ce\") > 1'}\n"
        "- {name: two, statement: t, holds: 'value(\"ce\") > 1'}\n"
    )
    one, two = read_claims(path)
    assert (one.source, one.family) == ("table 9", "own")
    assert (two.source, two.family) == (str(path), "")


@pytest.mark.parametrize(
    ("holds", "message"),
    [
        ('value("ce")', "must be a comparison"),
        ('value("ce") >= 1', "must be a comparison"),
        ('__import__("os").system("true") > 1', "not part of a claim's language"),
        ('value("ce").__class__ > 1', "not part of a claim's language"),
        ('value("ce", stag="grpo") > 1', "did you mean 'stage'"),
        ('value("ce", stage="rl") > 1', "stage=rl"),
        ('rl("ce", "entropy") > 1', "entropy_fall"),
        ('value("ce" > 1', "cannot be read"),
    ],
)
def test_text_outside_the_language_is_named(tmp_path: Path, holds: str, message: str) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text(json.dumps({"claims": [{"name": "custom", "statement": "s", "holds": [holds]}]}))
    with pytest.raises(UserError, match=message) as error:
        read_claims(path)
    assert "claim custom" in str(error.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("claims: 3", ""), ("[", r"it is not valid YAML \(while parsing a flow node"), ("claims: [{name: x}]", "")],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"claims=.*claims\.yaml: {reason}"):
        read_claims(path)


def test_exit_code_and_sentences() -> None:
    verdicts = judge(read_claims(), PaperSource())
    assert exit_code(verdicts) == 4
    supported = [v for v in verdicts if v.verdict == "supported"]
    assert exit_code(supported) == 0
    lines = sentences(verdicts)
    assert len(lines) == 3
    assert lines[0].startswith("It supports “Precision helps more as models grow”")
    assert lines[1] == "It contradicts none of the claims."


def test_models_are_ordered_by_their_parameters(tmp_path: Path) -> None:
    """Whatever the order in which they are planned."""
    cells = composed(("objective=ce",))
    small = [replace(cell, model=replace(cell.model, name="small", ffn=32)) for cell in cells]
    graph, store = plan([*cells, *small]), Store.create(tmp_path / "store")
    for run in graph.runs.values():
        parameters = 1000 if run.labels["model"] == "small" else 100_000
        write_run(store, run, **({"metrics": {"parameters": parameters}} if run.stage == "pretrain" else {}))
    ((parsed,),) = [parse('value("ce") > 0', "c")]
    assert StudySource(read_study(graph, store)).models(parsed.terms[0]) == ["small", "nano"]


def test_one_item_of_an_average_moves_it_less(make_store: Callable) -> None:
    """Three benchmarks of 64 items: each is a third of the average."""
    source = StudySource(read_study(*make_store(["objective=ce"])))
    for options, expected in (('benchmark="Chain-4", ', 100 / 64), ("", 100 / 64 * 3**0.5 / 3)):
        ((parsed,),) = [parse(f'value("ce", {options}metric="avg") > 0', "c")]
        assert source.quantity(parsed.terms[0], "nano").resolution == pytest.approx(expected)


@pytest.mark.parametrize("options", ['at="first"', 'variant="matched:precision"', 'benchmark="none"', 'metric="avg"'])
def test_the_papers_numbers_are_those_of_the_end_of_a_stage(options: str) -> None:
    terms = [parse(f'value("precision"{more}) > 0', "c")[0].terms[0] for more in ("", f", {options}")]
    assert PaperSource().quantity(terms[0], "4B").values.size == 1
    with pytest.raises(NotMeasured, match="is not among the known numbers"):
        PaperSource().quantity(terms[1], "4B")


def test_problems_that_differ_between_seeds_are_not_resampled() -> None:
    values = np.array([0.5, 0.5])
    two, four = np.array([0.0, 1.0]), np.array([0.0, 1.0, 0.0, 1.0])
    assert _matrix([two, four], values, 100) is None
    assert _matrix([two, None], values, 100) is None
    assert _matrix([two, 1 - two], np.array([0.5, 0.6]), 100) is None  # not what was measured
    matrix = _matrix([two, 1 - two], values, 100)
    assert matrix is not None
    assert matrix.tolist() == [[0, 100], [100, 0]]
