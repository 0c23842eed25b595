"""One part of the GPU benchmarks in a process of its own: python -m benchmarks.gpu.parts PART FILE [--small]

Each part is a generator, and its rows are written as they come, so that a part that fails keeps what it has measured.
"""

import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.gpu.rows import Measurement


def kernels(small: bool) -> Iterator[Measurement]:
    """The Triton kernels."""
    from benchmarks.gpu.losses import kernels as rows

    return rows(small)


def objective(small: bool) -> Iterator[Measurement]:
    """The objective against Liger and compiled cross-entropy."""
    from benchmarks.gpu.losses import objective as rows

    return rows(small)


def training(small: bool) -> Iterator[Measurement]:
    """Training with and without the shaped loss."""
    from benchmarks.gpu.losses import training as rows

    return rows(small)


def grpo(small: bool) -> Iterator[Measurement]:
    """GRPO against TRL."""
    from benchmarks.gpu.sampling import grpo as rows

    return rows(small)


def rollouts(small: bool) -> Iterator[Measurement]:
    """Rollouts by every engine, and the memory of a sleeping one."""
    from benchmarks.gpu.sampling import rollouts as rows

    return rows(small)


def experts(small: bool) -> Iterator[Measurement]:
    """A mixture of experts in vLLM."""
    from benchmarks.gpu.sampling import experts as rows

    return rows(small)


def evaluation(small: bool) -> Iterator[Measurement]:
    """Sampled answers of an evaluation."""
    from benchmarks.gpu.sampling import evaluation as rows

    return rows(small)


PARTS: dict[str, Callable[[bool], Iterator[Measurement]]] = {
    function.__name__: function for function in (kernels, objective, training, grpo, rollouts, experts, evaluation)
}


def main() -> None:
    """Write the rows of one part to a file."""
    part, path = sys.argv[1], Path(sys.argv[2])
    warnings.filterwarnings("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    rows: list[Measurement] = []
    for row in PARTS[part]("--small" in sys.argv):
        rows.append(row)
        path.write_text(json.dumps([row.to_json() for row in rows]))


if __name__ == "__main__":
    main()
