"""docs/own-study.md, typed as it is from an empty folder with a corpus of one's own."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.store.stage_runs import Store

PAGE = (Path(__file__).parents[1] / "docs" / "own-study.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
WORDS = (
    "river",
    "stone",
    "light",
    "water",
    "north",
    "winter",
    "paper",
    "garden",
    "silver",
    "morning",
    "letter",
    "forest",
)


def typed(block: str, folder: Path, **variables: str) -> str:
    """The output of a block that is typed into a shell, which stops at the first command that fails."""
    environment = {
        key: value for key, value in os.environ.items() if key not in ("SHAPING_CONFIG_DIR", "SHAPING_DEBUG")
    }
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **variables}
    shell = ["bash", "-euo", "pipefail", "-c", block]
    finished = subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def test_a_study_takes_at_most_six_commands() -> None:
    assert len(BLOCKS[0].splitlines()) <= 6
    assert sum("sed -i" in line for line in BLOCKS[0].splitlines()) == 1


@pytest.mark.ci_only
@pytest.mark.timeout(1200)
@pytest.mark.slow
def test_the_page_works_as_it_is(tmp_path: Path) -> None:
    rng = random.Random(0)
    (tmp_path / "corpus").mkdir()
    for number in range(2):
        texts = (" ".join(rng.choices(WORDS, k=30)) for _ in range(600))
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / "corpus" / f"{number}.jsonl").write_text(lines)
    typed(BLOCKS[0], tmp_path, WANDB_MODE="disabled")
    store = Store.open(tmp_path / "store")
    first = {run.signature: run for run in store.runs()}
    assert all(run.status == "done" for run in first.values())
    assert {run.stage for run in first.values()} == {"pretrain", "midtrain", "grpo", "evaluate"}
    tables = list((tmp_path / "results" / "custom" / "tables").iterdir())
    assert tables
    claims = json.loads((tmp_path / "results" / "custom" / "claims.json").read_text())
    assert [claim["claim"]["name"] for claim in claims["study"]] == ["flat-has-more-entropy", "flat-after-rl"]
    # The own corpus was trained on, and was measured.
    index = json.loads((tmp_path / "mine" / "shards" / "index.json").read_text())
    assert index["documents"] > 1200

    output = typed(BLOCKS[1], tmp_path, SHAPING_CONFIG_DIR="mine", WANDB_MODE="disabled")
    assert "grpo.plugins.estimate.verifier.source" in output
    second = [run for run in Store.open(tmp_path / "store").runs() if run.signature not in first]
    assert {run.stage for run in second} == {"grpo", "evaluate"}
    assert all(run.status == "done" for run in second)
    measurements = (tmp_path / "results" / "custom" / "measurements.csv").read_text()
    assert ",Four," in measurements
