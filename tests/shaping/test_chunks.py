"""The rows of the fused loss that have logits at a time: how often the gradient of the weight is rewritten."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from shaping import linear_shaped_cross_entropy, shaped_cross_entropy
from shaping.loss import default_chunk
from shaping.loss_operators import hidden_states_passes
from tests.shaping.test_linear_loss import BOTH, problem


class Rewrites(TorchDispatchMode):
    """Counts the operations that change a tensor of this shape in place."""

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if function is torch.ops.shaping.hidden_states_passes.default:
            with self:
                return hidden_states_passes._init_fn(*args, **(kwargs or {}))
        name = function._schema.name.split("::")[1]
        is_sum = name.endswith("_") and name not in ("zero_", "fill_", "empty_")
        self.count += is_sum and tuple(args[0].shape) == self.shape
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("vocabulary", "width", "chunks"), [(151_936, 1536, 22), (151_936, 4096, 8), (32_768, 768, 43)]
)
def test_a_large_vocabulary_rewrites_its_gradient_a_few_times(vocabulary: int, width: int, chunks: int) -> None:
    """16,384 tokens; the logits of a chunk in float32 take half of the gradient's memory at most."""
    rows = default_chunk(vocabulary, width)
    assert -(-16_384 // rows) == chunks
    assert rows <= width / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_is_rewritten_once_a_chunk(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shaping.loss.CHUNK_BYTES", 0)
    hidden, weight, _, targets = problem(dtype, rows=1000, width=256, vocabulary=300)
    with Rewrites((300, 256)) as seen:
        loss = linear_shaped_cross_entropy(hidden, weight, targets, BOTH)
    assert seen.count == 8  # 1,000 rows in chunks of 128
    loss.backward()
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    expected = shaped_cross_entropy(exact[0] @ exact[1].T, targets, BOTH)
    expected.backward()
    tolerance = 1e-4 if dtype == torch.float32 else 0.03
    for ours, theirs in (
        (loss.detach(), expected.detach()),
        (hidden.grad, exact[0].grad),
        (weight.grad, exact[1].grad),
    ):
        assert (ours.double() - theirs).norm() <= tolerance * theirs.norm()


def test_small_vocabularies_keep_their_chunks() -> None:
    """The models of a laptop, whose results are bit for bit those of earlier versions."""
    assert [default_chunk(640, 96), default_chunk(2048, 256)] == [13_107, 4096]
