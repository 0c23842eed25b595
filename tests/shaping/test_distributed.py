"""Two gloo processes with half of the rows each have the gradients of one process with all rows.

With DistributedDataParallel and with FSDP2, whose root group holds the output layer, tied and untied.
"""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from shaping import Objective, linear_shaped_cross_entropy
from tests.forked import forked

OBJECTIVE = Objective(-0.25, 0.1, -0.1, 5)
IDS = torch.arange(48).reshape(4, 12) % 30


class Model(nn.Module):
    """Embedding, one block, output layer; `forward` returns the loss."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.block = nn.Embedding(30, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 30, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.block(self.embedding(ids)).tanh()
        return linear_shaped_cross_entropy(hidden[:, :-1], self.head.weight, ids[:, 1:], OBJECTIVE, chunk_size=4)


def gradients(model: nn.Module) -> list[Tensor]:
    per_parameter = [p.grad for p in model.parameters()]
    return [g.full_tensor() if hasattr(g, "full_tensor") else g for g in per_parameter]  # type: ignore[union-attr, misc]


def compare_with_one_process(rank: int, folder: Path) -> None:
    """Runs as rank `rank` of two."""
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    mesh = dist.init_device_mesh("cpu", (2,))
    rows = IDS[2 * rank : 2 * rank + 2]
    for tied in (False, True):
        single = Model(tied)
        single(IDS).backward()
        wrapped = DistributedDataParallel(Model(tied))
        wrapped(rows).backward()
        torch.testing.assert_close(gradients(wrapped), gradients(single))

        sharded = Model(tied)
        fully_shard(sharded.block, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        sharded(rows).backward()
        torch.testing.assert_close(gradients(sharded), gradients(single))
    with pytest.raises(ValueError, match="sharded"):
        linear_shaped_cross_entropy(torch.zeros(2, 8), sharded.head.weight, torch.zeros(2, dtype=torch.long), OBJECTIVE)
    dist.destroy_process_group()
    (folder / f"agreed-{rank}").touch()


@pytest.mark.slow
def test_two_processes_agree_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    processes = [forked.Process(target=compare_with_one_process, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(path.name for path in tmp_path.glob("agreed-*")) == ["agreed-0", "agreed-1"]
