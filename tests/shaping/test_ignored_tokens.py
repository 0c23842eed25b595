"""What the adapters report of tokens that are ignored: nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shaping import Objective
from shaping.adapters import ShapedLossMixin
from shaping.shaped_model import LossOfCall

VOCABULARY, OBJECTIVE = 16, Objective(-0.25, 0.1, -0.1, 3)


def rows() -> tuple[Tensor, Tensor]:
    """Logits [2, 6, 16] that are sharp where the target is ignored and flat elsewhere, so that no mean is the same."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, VOCABULARY, generator=generator)
    targets = torch.randint(0, VOCABULARY, (2, 6), generator=generator)
    targets[0, :3], targets[1, 5] = -100, -100
    logits[targets == -100] *= 20
    return logits, targets


class Module(ShapedLossMixin):
    """Keeps what it logs."""

    logged: dict[str, Tensor]

    def log_dict(self, values: dict[str, Tensor]) -> None:
        self.logged = values


def test_the_logged_statistics_are_means_over_predicted_tokens() -> None:
    logits, targets = rows()
    module = Module()
    loss = module.shaped_loss(logits, targets, OBJECTIVE, stage="val")
    probs = logits[targets != -100].double().softmax(-1)  # [predicted tokens, V]
    p = probs[torch.arange(len(probs)), targets[targets != -100]]
    assert module.logged.keys() == {"val/loss", "val/cross_entropy", "val/entropy", "val/head_mass"}
    assert module.logged["val/loss"] == loss
    assert module.logged["val/cross_entropy"].item() == pytest.approx(-p.log().mean().item(), rel=1e-5)
    assert module.logged["val/entropy"].item() == pytest.approx(-(probs * probs.log()).sum(-1).mean().item(), rel=1e-5)
    assert module.logged["val/head_mass"].item() == pytest.approx(
        probs.sort(descending=True).values[:, :3].sum(-1).mean().item(), rel=1e-5
    )


@pytest.mark.parametrize("items", [None, 20])
def test_a_trainer_of_trl_gets_no_entropy_of_ignored_tokens(items: int | None) -> None:
    logits, targets = rows()

    class Model(nn.Module):
        shaped_objective = OBJECTIVE

        def get_output_embeddings(self) -> Any:
            return None

    call = LossOfCall(Model().eval(), {"num_items_in_batch": items}, per_token=True)
    labels = torch.cat([torch.full((2, 1), 7), targets[:, :-1]], 1)  # the target is the next label
    loss = call.loss_function(logits, labels, shift_labels=targets)
    kept = targets != -100
    probs = logits.double().softmax(-1)
    entropies = -(probs * probs.clamp(min=1e-300).log()).sum(-1)
    assert torch.equal(call.outputs["label_mask"], kept)
    torch.testing.assert_close(call.outputs["entropy"].double(), entropies * kept, rtol=1e-5, atol=1e-6)
    assert not call.outputs["log_probs"][~kept].any()
    assert loss.item() == pytest.approx(-call.outputs["log_probs"].sum().item() / (items or int(kept.sum())), rel=1e-5)
