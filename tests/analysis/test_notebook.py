"""The notebook in `docs/`: every cell runs on a store with known numbers and gives their answers."""

from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.analysis.conftest import Measured, known

NOTEBOOK = Path(__file__).parents[2] / "docs" / "questions.ipynb"


@pytest.mark.slow
def test_every_cell_runs_and_answers(make_store: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    _, store = make_store(["objective=ce,precision", "seed=1,2"])
    monkeypatch.setenv("SHAPING_STORE", str(store.root))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    answers = [cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(answers)
    assert not any(output["output_type"] == "error" for outputs in answers for output in outputs)
    assert "It leaves undecided" in str(answers[-2])
    # the entropy of the store's RL runs is 1 / step over four steps, of which two are at either end
    assert f"{(1 + 1 / 2) / 2 - (1 / 3 + 1 / 4) / 2:.6f}" in str(answers[-1])
    assert "precision" in str(answers[2])
    start = [
        known(Measured("precision", seed, "midtrain", 781, f"Chain-{length}", "avg@8"))
        for seed in (1, 2)
        for length in (3, 4, 5)
    ]
    # step 0 has the same benchmarks as RL's later steps
    assert f"<td>{100 * sum(start) / len(start):.1f}</td>" in str(answers[2])
