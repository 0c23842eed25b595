"""The real vLLM, built for CPUs, in an environment of its own: `.ci/run` makes it, elsewhere these tests are skipped.

vLLM changes torch's threads and its process group, so all checks run in one process of that environment.
"""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("VLLM_PYTHON", ROOT / ".venv-vllm" / "bin" / "python"))

pytestmark = [
    pytest.mark.ci_only,
    pytest.mark.skipif(not PYTHON.exists(), reason=f"no environment with vLLM at {PYTHON}; .ci/run makes one"),
]


def checked(program: str, folder: Path, *, launcher: Sequence[str] = ("-m",), result: str = "checks.json") -> Any:
    """What a program of this folder found."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("OMP_NUM_THREADS", None)
    command = [str(PYTHON), *launcher, f"tests.vllm.{program}", str(folder)]
    finished = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads((folder / result).read_text())


@pytest.fixture(scope="module")
def checks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return checked("checks", tmp_path_factory.mktemp("vllm"))


@pytest.mark.timeout(660)
@pytest.mark.parametrize("update", [0, 1, 2])
def test_samples_are_those_of_the_newest_weights(checks: dict[str, Any], update: int) -> None:
    """Tied and untied: greedy tokens of transformers, log-probabilities of a forward pass, cached prompts forgotten."""
    result = checks["updates"][update]
    assert result["greedy"]
    assert result["difference"] < 1e-4
    assert result["same share"]
    assert result["other seed"]
    assert result["nucleus"]
    assert result["stops"]
    assert result["distinct"] > 1


def test_other_weights_give_other_samples(checks: dict[str, Any]) -> None:
    responses = [json.dumps(result["responses"]) for result in checks["updates"]]
    assert len(set(responses)) == len(responses)


@pytest.mark.timeout(660)
def test_an_evaluation_samples_by_vllm_and_scores_by_the_checkpoint(tmp_path: Path) -> None:
    """Greedy answers of lm-eval's tasks and stop strings as by transformers, sampled ones with the right numbers."""
    result = checked("evaluation_checks", tmp_path)
    vllm, transformers = result["vllm"], result["transformers"]
    assert "evaluation.engine" not in result["refusal"]
    assert result["refusal"].startswith("grpo.engine=vllm: vLLM does not start with this model (heads of 24")
    assert set(vllm["metrics"]) == set(transformers["metrics"])
    for metric, value in transformers["metrics"].items():
        if metric.startswith(("Text/", "Greedy/")):
            assert vllm["metrics"][metric] == value, metric
    assert vllm["stop"] == transformers["stop"]
    assert vllm["cut"] == transformers["cut"]
    assert any(vllm["cut"][1])
    assert vllm["difference"] < 1e-4
    assert vllm["first"], "a sample depends on the number of its prompt, not on the range that it is in"
    assert len(vllm["samples"]) == len(transformers["samples"]) == 4 * 6 + 5 * 3
    assert vllm["samples"] != transformers["samples"], "vLLM draws other random numbers"


@pytest.mark.timeout(660)
def test_two_ranks_share_an_engine(tmp_path: Path) -> None:
    """Each has its share of what one engine samples, before and after an update, and a signal to one ends both.

    With one head of keys and values, which both hold, and with one for each.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    checked("group_checks", tmp_path, launcher=launcher, result="checks-0.json")
    ranks = [json.loads((tmp_path / f"checks-{rank}.json").read_text()) for rank in range(2)]
    for results in ranks:
        assert all(result["greedy"] for result in results)
        assert max(result["difference"] for result in results) < 1e-4
        assert [result.get("ended") for result in results] == [None, "interrupted"] * 2
        assert [result.get("ranks") for result in results] == [None, 2] * 2, "the ranks' own group outlives the engine"
    assert [len(result["responses"]) for result in ranks[0] + ranks[1]] == [5] * 4 + [7] * 4


def test_two_steps_of_rl(checks: dict[str, Any]) -> None:
    rows = checks["rl"]
    assert [row["step"] for row in rows] == [0, 1, 2]
    for row in rows[1:]:
        assert not row["skipped"]
        assert row["gradient_norm"] > 0
        assert row["mismatch"] < 1e-4
        assert row["ratio_p01"] == row["ratio_p99"] == 1
    assert all(0 <= row["held_out_reward"] <= 1 for row in rows)
