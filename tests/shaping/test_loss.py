"""The exact loss against brute force in float64, finite differences, and `F.cross_entropy`."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shaping import (
    NAMED,
    Objective,
    TokenStatistics,
    linear_shaped_cross_entropy,
    policy_gradient_variance,
    shaped_cross_entropy,
)
from shaping.loss import FLOOR

SETTINGS = [
    *NAMED.values(),
    Objective(beta=-0.9, lam_head=0.3, lam_tail=-0.4, top_k=3),
    Objective(beta=4.0, lam_head=-0.2, lam_tail=0.5, top_k=1),
    Objective(lam_head=0.2, lam_tail=0.2),
]


def policy_gradient_value(logits: Tensor, target: int, objective: Objective) -> Tensor:
    """Eq. 5 with Eq. 11-13 for one row, as a sum over the vocabulary of sg(pi_a r_a) log pi_a.

    Its gradient is the policy gradient. The head is found by sorting pairs (-logit, id).
    """
    log_probs = logits.log_softmax(-1)
    probs = log_probs.exp().detach()
    order = sorted(range(len(logits)), key=lambda j: (-float(logits[j].detach()), j))
    head = set(order[: objective.top_k])
    total = torch.zeros((), dtype=logits.dtype)
    for a in range(len(logits)):
        p = float(probs[a])
        if a == target:
            reward = max(1 - p, FLOOR) ** objective.beta / p
        else:
            reward = objective.lam_head if a in head else objective.lam_tail
        total = total - p * reward * log_probs[a]
    return total


def closed_value(logits: Tensor, target: int, objective: Objective) -> float:
    """The value of the closed form, from a softmax and plain sums."""
    probs = logits.double().softmax(-1).tolist()
    order = sorted(range(len(probs)), key=lambda j: (-float(logits[j].detach()), j))
    head = sum(probs[j] for j in order[: objective.top_k] if j != target)
    tail = sum(probs[j] for j in order[objective.top_k :] if j != target)
    p = probs[target]
    weight = max(1 - p, FLOOR) ** objective.beta
    return -(weight * math.log(p) + objective.lam_head * head + objective.lam_tail * tail)


def with_smaller_head(objective: Objective, vocabulary: int) -> Objective:
    return Objective(
        objective.beta, objective.lam_head, objective.lam_tail, min(objective.top_k, max(1, vocabulary // 2))
    )


@pytest.mark.parametrize("objective", SETTINGS, ids=str)
def test_gradient_is_the_policy_gradient(objective: Objective) -> None:
    torch.manual_seed(0)
    logits = (3 * torch.randn(6, 11, dtype=torch.float64)).requires_grad_()
    targets = torch.tensor([0, 3, 10, 5, 5, 1])
    objective = with_smaller_head(objective, 11)
    (ours,) = torch.autograd.grad(shaped_cross_entropy(logits, targets, objective, reduction="sum"), logits)
    expected = sum(policy_gradient_value(row, int(t), objective) for row, t in zip(logits, targets, strict=True))
    (theirs,) = torch.autograd.grad(expected, logits)  # type: ignore[arg-type]
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("objective", SETTINGS, ids=str)
def test_value_is_the_closed_form(objective: Objective) -> None:
    torch.manual_seed(1)
    logits, targets = 2 * torch.randn(5, 9, dtype=torch.float64), torch.tensor([8, 0, 4, 2, 2])
    objective = with_smaller_head(objective, 9)
    losses = shaped_cross_entropy(logits, targets, objective, reduction="none")
    expected = [closed_value(row, int(t), objective) for row, t in zip(logits, targets, strict=True)]
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64))


def test_finite_differences_of_the_lambda_part() -> None:
    """With beta = 0 nothing is held constant, so the slope of the value is the gradient."""
    torch.manual_seed(2)
    logits = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    objective = Objective(lam_head=0.7, lam_tail=-0.6, top_k=3)
    targets = torch.tensor([1, 6, 2])
    torch.autograd.gradcheck(
        lambda z: shaped_cross_entropy(z, targets, objective, reduction="none"), (logits,), check_batched_grad=False
    )


@settings(max_examples=150, deadline=None)
@given(
    beta=st.floats(-0.9, 4),
    lam_head=st.floats(-2, 2),
    lam_tail=st.floats(-2, 2),
    vocabulary=st.integers(2, 40),
    rows=st.integers(1, 5),
    data=st.data(),
)
def test_any_setting_agrees_with_brute_force(
    beta: float, lam_head: float, lam_tail: float, vocabulary: int, rows: int, data: st.DataObject
) -> None:
    objective = Objective(beta, lam_head, lam_tail, data.draw(st.integers(1, vocabulary)))
    # Integer logits have ties, also at the k-th place.
    entries = st.lists(st.integers(-3, 3), min_size=vocabulary, max_size=vocabulary)
    logits = torch.tensor([data.draw(entries) for _ in range(rows)], dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([data.draw(st.integers(0, vocabulary - 1)) for _ in range(rows)])
    loss = shaped_cross_entropy(logits, targets, objective, reduction="none")
    expected = [closed_value(row, int(t), objective) for row, t in zip(logits, targets, strict=True)]
    torch.testing.assert_close(loss.detach(), torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=1e-9)
    (ours,) = torch.autograd.grad(loss.sum(), logits)
    (theirs,) = torch.autograd.grad(
        sum(policy_gradient_value(row, int(t), objective) for row, t in zip(logits, targets, strict=True)),  # type: ignore[arg-type]
        logits,
    )
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_all_knobs_at_zero_is_cross_entropy_bit_for_bit(reduction: str, dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    logits, targets = torch.randn(8, 33).to(dtype), torch.randint(0, 33, (8,))
    targets[2] = -100
    ours = shaped_cross_entropy(logits, targets, Objective(), reduction=reduction)  # type: ignore[call-overload]
    assert torch.equal(ours, F.cross_entropy(logits, targets, reduction=reduction))


def test_statistics_do_not_change_cross_entropy() -> None:
    torch.manual_seed(3)
    logits, targets = torch.randn(8, 33), torch.randint(0, 33, (8,))
    targets[2] = -100
    for reduction in ("mean", "sum", "none"):
        ours, _ = shaped_cross_entropy(logits, targets, Objective(), reduction=reduction, return_stats=True)  # type: ignore[call-overload]
        assert torch.equal(ours, F.cross_entropy(logits, targets, reduction=reduction))


@pytest.mark.parametrize("vocabulary", [32_768, 50_257, 151_936])
def test_large_vocabularies(vocabulary: int) -> None:
    """In float32 against autograd of the closed form in float64, with the head from a full sort."""
    generator = torch.Generator().manual_seed(0)
    logits = (2 * torch.randn(3, vocabulary, generator=generator)).requires_grad_()
    targets = torch.tensor([0, vocabulary - 1, int(logits[2].argmax())])
    objective = Objective(0.5, 0.1, -0.2, 100)
    exact = logits.detach().double().requires_grad_()
    probs = exact.softmax(-1)
    head = torch.zeros_like(exact).scatter(-1, exact.detach().sort(dim=-1, descending=True).indices[:, :100], 1.0)
    wrong = torch.ones_like(exact).scatter(-1, targets[:, None], 0.0)
    p = probs.gather(-1, targets[:, None])[:, 0]
    masses = (probs * wrong * head).sum(-1), (probs * wrong * (1 - head)).sum(-1)
    theirs = -((1 - p).detach() ** 0.5 * p.log() + 0.1 * masses[0] - 0.2 * masses[1]).sum()
    ours = shaped_cross_entropy(logits, targets, objective, reduction="sum")
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=0)
    gradient = torch.autograd.grad(ours, logits)[0].double()
    torch.testing.assert_close(gradient, torch.autograd.grad(theirs, exact)[0], rtol=1e-5, atol=1e-9)


def test_finite_differences_with_constant_weights() -> None:
    """The slope of w log p with a constant w = (1 - p)^beta, as the stop-gradient makes it."""
    torch.manual_seed(8)
    logits, targets = torch.randn(4, 6, dtype=torch.float64, requires_grad=True), torch.tensor([0, 5, 2, 2])
    objective, step = Objective(-0.6, 0.3, -0.2, 2), 1e-6

    def value(z: Tensor, w: Tensor) -> float:
        log_p = z.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
        lambdas = shaped_cross_entropy(z, targets, Objective(0, 0.3, -0.2, 2), reduction="none") + log_p
        return float((lambdas - w * log_p).sum())

    with torch.no_grad():
        w = (1 - logits.softmax(-1).gather(-1, targets[:, None])[:, 0]) ** -0.6
        slopes = torch.zeros_like(logits)
        for i in range(4):
            for j in range(6):
                for sign in (1, -1):
                    moved = logits.clone()
                    moved[i, j] += sign * step
                    slopes[i, j] += sign * value(moved, w) / (2 * step)
    ours = torch.autograd.grad(shaped_cross_entropy(logits, targets, objective, reduction="sum"), logits)[0]
    torch.testing.assert_close(ours, slopes, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("objective", [Objective(1e-9), Objective(lam_head=1e-9, top_k=4)], ids=["beta", "lambda"])
def test_small_knobs_are_close_to_cross_entropy(objective: Objective) -> None:
    torch.manual_seed(4)
    logits, targets = torch.randn(8, 33, requires_grad=True), torch.randint(0, 33, (8,))
    ours = shaped_cross_entropy(logits, targets, objective)
    theirs = F.cross_entropy(logits, targets)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits))


@pytest.mark.parametrize("objective", SETTINGS, ids=str)
def test_ignored_rows_and_weights(objective: Objective) -> None:
    torch.manual_seed(5)
    objective = with_smaller_head(objective, 12)
    logits, targets = torch.randn(2, 4, 12, dtype=torch.float64), torch.randint(0, 12, (2, 4))
    targets[0, 1] = targets[1, 3] = -100
    weight = torch.rand(2, 4, dtype=torch.float64)
    kept = targets != -100
    losses = shaped_cross_entropy(logits, targets, objective, reduction="none")
    assert losses.shape == targets.shape
    assert not losses[~kept].any()
    mean = shaped_cross_entropy(logits, targets, objective)
    torch.testing.assert_close(mean, losses.sum() / kept.sum())
    weighted = shaped_cross_entropy(logits, targets, objective, weight=weight)
    torch.testing.assert_close(weighted, (losses * weight).sum() / weight[kept].sum())


@pytest.mark.parametrize("objective", [Objective(), Objective(0.5), NAMED["head_reward"]], ids=str)
def test_all_targets_ignored(objective: Objective) -> None:
    logits, targets = torch.randn(3, 200, requires_grad=True), torch.full((3,), -100)
    total = shaped_cross_entropy(logits, targets, objective, reduction="sum")
    total.backward()
    assert total == 0
    assert not logits.grad.any()  # type: ignore[union-attr]
    assert shaped_cross_entropy(logits, targets, objective).isnan()  # as F.cross_entropy
    empty = shaped_cross_entropy(torch.randn(0, 200), torch.zeros(0, dtype=torch.long), objective, reduction="sum")
    assert empty == 0


def test_a_certain_prediction_has_a_finite_loss_with_negative_beta() -> None:
    logits = torch.tensor([[100.0, 0.0, -50.0]], requires_grad=True)
    loss = shaped_cross_entropy(logits, torch.tensor([0]), Objective(-0.9))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()  # type: ignore[union-attr]


def test_logits_of_minus_infinity() -> None:
    """Their probability and gradient are 0."""
    logits = torch.tensor([[1.0, -torch.inf, 0.5, 0.2]], requires_grad=True)
    shaped_cross_entropy(logits, torch.tensor([0]), Objective(0.5, 0.1, -0.1, 2)).backward()
    assert logits.grad.isfinite().all()  # type: ignore[union-attr]
    assert logits.grad[0, 1] == 0  # type: ignore[index]


@pytest.mark.parametrize(
    "objective", [Objective(top_k=2), Objective(0.5, top_k=2), Objective(0.5, 0.1, -0.1, 2)], ids=str
)
def test_statistics_with_logits_of_minus_infinity(objective: Objective) -> None:
    """They are those of only the finite logits, also in a row where all are finite."""
    logits = torch.tensor([[1.0, -torch.inf, 0.5, 0.2], [0.3, 0.1, -0.2, 0.0]])
    targets = torch.tensor([2, 3])
    _, measured = shaped_cross_entropy(logits, targets, objective, return_stats=True)
    for row, finite, rank in ((0, [1.0, 0.5, 0.2], 2), (1, [0.3, 0.1, -0.2, 0.0], 3)):
        probabilities = torch.tensor(finite, dtype=torch.float64).softmax(0)
        assert measured.entropy[row].item() == pytest.approx(-float(probabilities @ probabilities.log()), abs=1e-6)
        head = probabilities.sort(descending=True).values[:2].sum().item()
        assert measured.head_mass[row].item() == pytest.approx(head, abs=1e-6)
        assert measured.tail_mass[row].item() == pytest.approx(1 - head, abs=1e-6)
        assert measured.target_rank[row].item() == rank


@settings(max_examples=40, deadline=None)
@given(shift=st.floats(-50, 50), seed=st.integers(0, 999))
def test_invariances(shift: float, seed: int) -> None:
    """Adding a constant to a row, permuting the vocabulary or splitting the batch does not change the losses."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 13, dtype=torch.float64, generator=generator)
    targets = torch.randint(0, 13, (4,), generator=generator)
    objective = Objective(0.3, 0.2, -0.3, 5)
    losses = shaped_cross_entropy(logits, targets, objective, reduction="none")
    permutation = torch.randperm(13, generator=generator)
    for changed, moved in ((logits + shift, targets), (logits[:, permutation], permutation.argsort()[targets])):
        torch.testing.assert_close(shaped_cross_entropy(changed, moved, objective, reduction="none"), losses)
    halves = [shaped_cross_entropy(logits[i::2], targets[i::2], objective, reduction="none") for i in (0, 1)]
    torch.testing.assert_close(torch.stack(halves, 1).flatten(), losses)


def test_a_head_of_the_whole_vocabulary_has_no_tail() -> None:
    logits, targets = torch.randn(4, 9), torch.tensor([0, 1, 2, 8])
    losses = [shaped_cross_entropy(logits, targets, Objective(0, 0.3, tail, 9)) for tail in (-1.0, 0.5)]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_close_to_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(6)
    logits, targets = torch.randn(16, 50).to(dtype), torch.randint(0, 50, (16,))
    ours = shaped_cross_entropy(logits, targets, Objective(0.5, 0.1, -0.1, 7), reduction="sum")
    theirs = shaped_cross_entropy(logits.float(), targets, Objective(0.5, 0.1, -0.1, 7), reduction="sum")
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.float(), theirs, rtol=1e-2, atol=1e-2)


def test_transposed_logits_and_int32_targets() -> None:
    logits, targets = torch.randn(30, 5).t(), torch.tensor([1, 2, 3, 4, 29], dtype=torch.int32)
    objective = Objective(0.5, 0.1, 0, 4)
    ours = shaped_cross_entropy(logits, targets, objective)
    torch.testing.assert_close(ours, shaped_cross_entropy(logits.contiguous(), targets.long(), objective))


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("gap", [50.0, 104.0, 500.0, 30_000.0])
def test_the_log_probability_of_a_target_does_not_underflow(gap: float, backend: str) -> None:
    """Its probability is 0 in float32 from 104 nats on; cross-entropy must stay finite."""
    if backend == "triton":
        pytest.importorskip("triton", reason="Triton is available only on Linux")
    logits = torch.zeros(3, 130)
    logits[:, 7] = -gap
    logits[1, 90] = gap
    targets = torch.tensor([7, 7, 90])
    loss, stats = shaped_cross_entropy(
        logits,
        targets,
        Objective(1e-30),
        reduction="none",
        return_stats=True,
        backend=backend,  # type: ignore[call-overload]
    )
    expected = logits.double().log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    torch.testing.assert_close(stats.target_log_probability.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(-loss.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(stats.target_probability.double(), expected.exp(), rtol=1e-5, atol=1e-38)
    variance = policy_gradient_variance(logits[:1].clamp(min=-600), targets[:1], Objective(), num_samples=4)
    assert not variance.isnan().any()


def test_statistics_are_returned_with_the_loss() -> None:
    torch.manual_seed(7)
    logits, targets = torch.randn(3, 8), torch.tensor([2, -100, 7])
    loss, stats = shaped_cross_entropy(logits, targets, Objective(0.5, top_k=3), return_stats=True)
    torch.testing.assert_close(loss, shaped_cross_entropy(logits, targets, Objective(0.5, top_k=3)))
    assert isinstance(stats, TokenStatistics)
    probabilities = logits.double().softmax(-1)
    entropy = -(probabilities * probabilities.log()).sum(-1)
    torch.testing.assert_close(stats.entropy.double(), entropy, atol=1e-6, rtol=1e-6)
    head = probabilities.sort(descending=True).values[:, :3].sum(-1)
    torch.testing.assert_close(stats.head_mass.double(), head, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(stats.head_mass + stats.tail_mass, torch.ones(3))
    assert stats.target_probability[1].isnan()
    assert stats.target_log_probability[1].isnan()
    assert stats.target_rank.tolist() == [
        int((logits[0] >= logits[0, 2]).sum()),
        0,
        int((logits[2] >= logits[2, 7]).sum()),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(2, 4, dtype=torch.long)}, "logits has type"),
        ({"targets": torch.zeros(2)}, "targets has type"),
        ({"targets": torch.zeros(3, dtype=torch.long)}, r"the shapes must be \[N, V\] and \[N\], or \[B, T, V\]"),
        ({"targets": torch.tensor([0, 4])}, "targets contain 4"),
        ({"objective": Objective(lam_tail=1, top_k=5)}, "top_k=5"),
        ({"weight": torch.ones(3)}, "weight"),
        ({"reduction": "avg"}, "reduction='avg'"),
    ],
)
def test_wrong_arguments_are_named(change: dict, message: str) -> None:
    arguments = {"logits": torch.zeros(2, 4), "targets": torch.tensor([0, 1]), "objective": Objective(0.5)} | change
    with pytest.raises(ValueError, match=message):
        shaped_cross_entropy(**arguments)


def test_second_derivatives_raise() -> None:
    logits = torch.randn(2, 4, requires_grad=True)
    loss = shaped_cross_entropy(logits, torch.tensor([0, 1]), Objective(0.5))
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, logits, create_graph=True)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize(
    ("wrong", "floor", "least"), [(1e-5, None, 1e-5), (1e-8, None, 1e-6), (1e-2, 0.1, 0.1), (0.2, 0.1, 0.2)]
)
def test_a_nearly_certain_token_weighs_as_at_the_floor(
    wrong: float, floor: float | None, least: float, reduction: str, fused: bool
) -> None:
    """Of two tokens the true one has p = 1 - wrong: its weight is max(1 - p, floor)^beta, by default with 1e-6."""
    logits = torch.tensor([[math.log((1 - wrong) / wrong), 0.0]], dtype=torch.float64, requires_grad=True)
    inputs = (logits, torch.eye(2, dtype=torch.float64)) if fused else (logits,)
    options = {"reduction": reduction} | ({} if floor is None else {"floor": floor})
    function = linear_shaped_cross_entropy if fused else shaped_cross_entropy
    loss = function(*inputs, torch.tensor([0]), Objective(-0.25), **options)  # type: ignore[operator]
    loss.sum().backward()
    assert loss.item() == pytest.approx(-(least**-0.25) * math.log1p(-wrong), rel=1e-6)
    assert logits.grad[0, 1].item() == pytest.approx(least**-0.25 * wrong, rel=1e-6)  # type: ignore[index]


@pytest.mark.parametrize("objective", [Objective(), Objective(0.5, 0.1, -0.1, 3)], ids=str)
def test_of_tied_tokens_only_the_lowest_id_is_the_likeliest(objective: Objective) -> None:
    logits = torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0]]).repeat(5, 1)
    _, statistics = shaped_cross_entropy(logits, torch.arange(5), objective, return_stats=True)
    assert statistics.target_rank.tolist() == [4, 1, 2, 5, 3]
