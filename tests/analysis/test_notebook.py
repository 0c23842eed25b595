"""The notebook in `docs/`: written by its script, and executed on a hand-made store."""

from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

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
    assert "It leaves undecided" in str(answers[-1])
    assert "precision" in str(answers[2])
