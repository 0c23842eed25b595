"""Starts several processes as ranks of one job: forked, with the environment variables that torchrun sets."""

import os
import socket
from collections.abc import Callable
from typing import Any

import torch

from pipelines.stage_context import Ranks
from tests.forked import forked


def run_ranks(count: int, work: Callable[..., None], *arguments: Any, seconds: float = 240) -> list[int | None]:
    """Call `work(ranks, *arguments)` in `count` new processes; returns their exit codes, None for one that hangs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        forked.Process(target=_as_rank, args=(Ranks(rank, count), port, (work, arguments))) for rank in range(count)
    ]
    for started in processes:
        started.start()
    for started in processes:
        started.join(seconds)
    codes = [ended.exitcode for ended in processes]
    for hanging in processes:
        hanging.kill()
    return codes


def _as_rank(ranks: Ranks, port: int, work: tuple[Callable[..., None], tuple[Any, ...]]) -> None:
    torch.set_num_threads(1)
    if ranks.tasks > 1:
        os.environ |= {
            "RANK": str(ranks.rank),
            "LOCAL_RANK": str(ranks.rank),
            "WORLD_SIZE": str(ranks.tasks),
            "LOCAL_WORLD_SIZE": str(ranks.tasks),
            "GROUP_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "test",
        }
    function, arguments = work
    function(ranks, *arguments)
