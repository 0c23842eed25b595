"""What the optimizer of the training stages does, against AdamW's formula written out."""

import torch
from torch import nn

from pipelines.training.optimizer import adamw


def test_matrices_decay_and_the_scales_of_norms_do_not() -> None:
    """Without a gradient of its own, AdamW multiplies a weight by 1 - rate x decay."""
    model = nn.Sequential(nn.Linear(3, 4, bias=True), nn.LayerNorm(4), nn.Embedding(5, 4))
    for parameter in model.parameters():
        nn.init.constant_(parameter, 2.0)
        parameter.grad = torch.zeros_like(parameter)
    adamw(model, learning_rate=0.1, weight_decay=0.5, betas=(0.9, 0.95)).step()
    after = {name: parameter.unique().tolist() for name, parameter in model.named_parameters()}
    still, decayed = [2.0], [torch.tensor(2.0 * (1 - 0.1 * 0.5)).item()]
    assert after == {
        "0.weight": decayed, "0.bias": still, "1.weight": still, "1.bias": still, "2.weight": decayed
    }  # fmt: skip


def test_two_steps_are_those_of_the_paper() -> None:
    """Moments, their correction and the decay apart from the gradient, in plain floats."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.5)
    optimizer = adamw(model, learning_rate=0.01, weight_decay=0.2, betas=(0.8, 0.9))
    weight, first, second = 1.5, 0.0, 0.0
    for step, gradient in ((1, 0.3), (2, -0.7)):
        model.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
        weight *= 1 - 0.01 * 0.2
        first, second = 0.8 * first + 0.2 * gradient, 0.9 * second + 0.1 * gradient**2
        weight -= 0.01 * (first / (1 - 0.8**step)) / ((second / (1 - 0.9**step)) ** 0.5 + 1e-8)
        torch.testing.assert_close(model.weight.item(), weight, rtol=1e-5, atol=0)


def test_frozen_weights_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.LayerNorm(2))
    model[0].weight.requires_grad_(False)
    groups = adamw(model, learning_rate=0.1, weight_decay=0.5, betas=(0.9, 0.95)).param_groups
    assert [[p.shape for p in group["params"]] for group in groups] == [[(2,), (2,)]]
