"""A GRPO step on two ranks against one.

    python -m benchmarks.two_ranks [--json FILE]

The step of `benchmarks.grpo` with 5 M parameters, 8 prompts x 8 samples and 256 new tokens, in processes of one thread
each: two gloo ranks that share sampling and update and average their gradients (DDP), and a single process. They are
started once and wait while the other side takes its step, so the sides alternate. Two cores that do nothing else are
needed: otherwise two ranks wait for the slower one.
"""

import sys
import tempfile
from contextlib import ExitStack, nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.overrides.distributed import prepare_for_backward
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from benchmarks.comparison import Row, report, timed
from benchmarks.grpo import LARGE, Shape, our_step
from pipelines.grpo.communicator import Communicator
from pipelines.grpo.policy import Policy
from tests.forked import forked

BAR = 0.6
"""Two ranks take at most this share of one rank's time."""


def _serve(rank: int, ranks: int, shape: Shape, folder: Path, requests: Connection) -> None:
    """Take a step for each request that is true, and answer with the sum of all weights."""
    torch.set_num_threads(1)
    policy = Policy(shape.model())
    options: dict[str, Any] = {}
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/{ranks}-ranks", rank=rank, world_size=ranks)
        averaged = DistributedDataParallel(policy)

        def backward(loss: Tensor, last: bool) -> None:
            """As `pipelines.grpo.module` does on Lightning's strategy."""
            with nullcontext() if last else averaged.no_sync():
                prepare_for_backward(averaged, loss)
                loss.backward()

        options = {"communicator": Communicator(rank, ranks), "backward": backward}
    step = our_step(shape, policy=policy, **options)
    while requests.recv():
        step()
        requests.send(sum(weights.double().sum().item() for weights in policy.parameters()))
    if ranks > 1:
        dist.destroy_process_group()


class Team:
    """Processes that take GRPO steps together, one rank each; a context."""

    def __init__(self, ranks: int, shape: Shape, folder: Path) -> None:
        """`folder` is where the ranks find each other."""
        pairs = [forked.Pipe() for _ in range(ranks)]
        self._requests = [ours for ours, _ in pairs]
        self._processes = [
            forked.Process(target=_serve, args=(rank, ranks, shape, folder, theirs))
            for rank, (_, theirs) in enumerate(pairs)
        ]
        for process, (_, theirs) in zip(self._processes, pairs, strict=True):
            process.start()
            theirs.close()  # the rank's own end, so that its death is noticed

    def step(self) -> float:
        """One step of all ranks; returns the sum of the weights. Raises `EOFError` if a rank has died."""
        for connection in self._requests:
            connection.send(True)
        sums = [connection.recv() for connection in self._requests]
        assert len(set(sums)) == 1, f"the ranks have different weights: {sums}"
        return float(sums[0])

    def __enter__(self) -> "Team":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection, process in zip(self._requests, self._processes, strict=True):
            if error is None:
                connection.send(False)
            else:
                process.kill()
        for process in self._processes:
            process.join()


def row(shape: Shape, *, rounds: int) -> Row:
    """Median seconds of a step of two ranks and of one."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        two, one = (stack.enter_context(Team(ranks, shape, Path(folder))) for ranks in (2, 1))
        seconds = timed({"ours": two.step, "peer": one.step}, rounds=rounds)
    return Row(f"GRPO step on two ranks, {shape.name}", seconds["ours"], seconds["peer"], "s", BAR)


if __name__ == "__main__":
    sys.exit(report([row(LARGE, rounds=5)], "Two ranks against one"))
