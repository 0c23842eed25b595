"""Two gloo processes with half of the rows each have the gradients of one process with all rows.

With DistributedDataParallel and with FSDP2, whose root group holds the output layer, tied and untied; also the models
that `use_shaped_loss` changed. Ignored targets count as those of F.cross_entropy do.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from shaping import Objective, linear_shaped_cross_entropy, shaped_cross_entropy
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


def compare_ignored_targets(rank: int) -> None:
    """Without knobs the gradients are those of F.cross_entropy in the same processes, whoever has how many targets."""
    from torch.nn.parallel import DistributedDataParallel

    hidden = torch.randn(6, 8, generator=torch.Generator().manual_seed(rank))
    for targets in ([1, 2, 3, 4, 5, 6], [1, -100, 2, -100, 3, 4], [-100] * 6):
        mine = torch.tensor(targets if rank else [7, 8, 9, 1, 2, -100])
        results = []
        for is_fused in (True, False):
            torch.manual_seed(0)
            head = DistributedDataParallel(Head())
            loss = head(hidden, mine) if is_fused else F.cross_entropy(hidden @ head.module.weight.t(), mine)
            if not is_fused:  # the same reduction as DistributedDataParallel
                (gradient,) = torch.autograd.grad(loss, head.module.weight)
                dist.all_reduce(gradient)
                results.append((loss, gradient / 2))
                continue
            loss.backward()
            results.append((loss, head.module.weight.grad))
        torch.testing.assert_close(*results, equal_nan=True)


class Head(nn.Module):
    """An output layer whose `forward` is the loss without knobs, computed by our own code."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(30, 8))

    def forward(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return linear_shaped_cross_entropy(hidden, self.weight, targets, Objective())


def compare_models_of_transformers(rank: int, mesh: Any) -> None:
    """`use_shaped_loss` before and after DistributedDataParallel and fully_shard, with unequal numbers of targets."""
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    from shaping.adapters import use_shaped_loss
    from tests.shaping.test_adapters import IDS as ids
    from tests.shaping.test_adapters import LABELS as labels
    from tests.shaping.test_adapters import qwen

    logits = (single := qwen())(input_ids=ids).logits
    shaped_cross_entropy(logits[:, :-1], labels[:, 1:], OBJECTIVE).backward()
    count = (labels[:, 1:] != -100).sum()
    mine = slice(4 * rank, 4 * rank + 4)
    for wrap in (DistributedDataParallel, lambda model: fully_shard(model, mesh=mesh)):
        for is_first in (True, False):
            model = qwen().train()
            if is_first:
                use_shaped_loss(model, OBJECTIVE)
            wrapped = wrap(model)
            if not is_first:
                use_shaped_loss(wrapped, OBJECTIVE)
            output = wrapped(input_ids=ids[mine], labels=labels[mine], num_items_in_batch=count / 2)
            assert output.logits is None
            output.loss.backward()
            torch.testing.assert_close(gradients(wrapped), gradients(single))


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
    compare_ignored_targets(rank)
    compare_models_of_transformers(rank, mesh)
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
