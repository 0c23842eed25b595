"""The fixed point against gradient descent and closed forms; temperature; the sampled gradient."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import entropy as scipy_entropy

from shaping import NAMED, Objective, shaped_cross_entropy
from shaping.estimators import policy_gradient_variance, sampled_policy_gradient_loss, token_rewards
from shaping.theory import effective_temperature, expected_gradient, stationary_distribution

SETTINGS = [
    *NAMED.values(),
    Objective(-0.6),
    Objective(3.0),
    Objective(0.5, 0.1, -0.1, 3),
    Objective(0.0, 0.1, 0.0, 3),
    Objective(0.0, 0.0, -0.3, 2),
]


def data(rows: int = 3, vocabulary: int = 8, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (1.5 * torch.randn(rows, vocabulary, dtype=torch.float64, generator=generator)).softmax(-1)


def with_head_of_four(objective: Objective) -> Objective:
    return Objective(objective.beta, objective.lam_head, objective.lam_tail, min(objective.top_k, 4))


@pytest.mark.parametrize("objective", SETTINGS, ids=str)
def test_gradient_descent_converges_to_it(objective: Objective) -> None:
    """A table of logits trained with the library's loss, every target weighted by its probability.

    Each logit's step is divided by that probability, so that rare tokens converge as fast as common ones.
    """
    q, objective = data(), with_head_of_four(objective)
    logits = q.log().clone().requires_grad_()
    rows, vocabulary = q.shape
    targets = torch.arange(vocabulary).repeat(rows)
    for _ in range(250):
        repeated = logits.repeat_interleave(vocabulary, 0)
        loss = shaped_cross_entropy(repeated, targets, objective, reduction="sum", weight=q.flatten())
        (gradient,) = torch.autograd.grad(loss, logits)
        with torch.no_grad():
            logits -= 0.3 * gradient / q
    torch.testing.assert_close(logits.softmax(-1).detach(), stationary_distribution(q, objective), atol=1e-6, rtol=1e-5)


def test_gradient_descent_oscillates_about_it_if_the_tail_earns_more() -> None:
    """Tokens share the k-th place there; descent with a shrinking step ends near the solution, including its ties."""
    q, objective = data(), Objective(0.25, -0.2, 0.2, 3)
    p = stationary_distribution(q, objective)
    logits = q.log().clone()
    for step in range(1500):
        logits -= 0.3 / (1 + step / 20) * expected_gradient(logits.softmax(-1), q, objective) / q
    torch.testing.assert_close(logits.softmax(-1), p, atol=1e-3, rtol=1e-2)
    third, fourth = p.sort(dim=-1, descending=True).values[:, 2:4].unbind(-1)
    assert (third - fourth).amin() < 1e-12  # at least one row shares it


def test_cross_entropy_converges_to_the_data() -> None:
    q = data(4, 50)
    torch.testing.assert_close(stationary_distribution(q, Objective()), q, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("beta", [-0.9, -0.25, 0.5, 2.0])
@pytest.mark.parametrize("p", [0.01, 0.3, 0.5, 0.95])
def test_two_tokens_have_a_closed_form(beta: float, p: float) -> None:
    """logit p = logit q / (1 + beta)."""
    p_stationary = stationary_distribution(torch.tensor([p, 1 - p], dtype=torch.float64), Objective(beta))
    logit = math.log(p / (1 - p)) / (1 + beta)
    assert p_stationary[0].item() == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-9)


@settings(max_examples=20, deadline=None)
@example(beta=3.0, lam_head=0.5, lam_tail=0.0, vocabulary=2, seed=0, top_k=2)
@given(
    beta=st.floats(-0.9, 4),
    lam_head=st.floats(-0.5, 0.5),
    lam_tail=st.floats(-0.5, 0.5),
    vocabulary=st.integers(2, 60),
    seed=st.integers(0, 99),
    top_k=st.integers(1, 60),
)
def test_the_gradient_vanishes_at_the_fixed_point(
    beta: float, lam_head: float, lam_tail: float, vocabulary: int, seed: int, top_k: int
) -> None:
    q = data(2, vocabulary, seed=seed)
    objective = Objective(beta, lam_head, lam_tail, min(top_k, vocabulary))
    try:
        p = stationary_distribution(q, objective)
    except ArithmeticError:
        assert max(lam_head, lam_tail) >= 2 ** (1 - beta)  # see its docstring
        return
    assert (p.sum(-1) - 1).abs().max() < 1e-9
    gradient = expected_gradient(p, q, objective) / (q * (1 - p) ** beta).amax().clamp(min=1)
    if lam_head >= lam_tail or objective.top_k == vocabulary:
        assert gradient.abs().max() < 1e-9
    else:  # where tokens share the k-th place the gradient jumps
        ranked = p.sort(dim=-1, descending=True).values
        unshared = ranked[:, objective.top_k - 1] - ranked[:, objective.top_k] > 1e-6
        assert gradient[unshared].abs().sum() < 1e-9


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("beta", [-0.6, -0.2, 0.7])
def test_a_tail_that_earns_much_more(beta: float, top_k: int) -> None:
    q, objective = data(200, 5, seed=3), Objective(beta, -0.9, 0.3, top_k)
    p = stationary_distribution(q, objective)
    ranked = p.sort(dim=-1, descending=True).values
    unshared = ranked[:, top_k - 1] - ranked[:, top_k] > 1e-6
    assert unshared.sum() > 5
    assert expected_gradient(p, q, objective)[unshared].abs().max() < 1e-9


def test_the_effect_of_the_lambdas() -> None:
    """lam_tail = -0.1 lowers a tail token's odds by about 9 %, lam_head = 0.1 raises a rare token's by at most 11 %."""
    q = torch.tensor([0.6, 0.3, 0.05, 0.03, 0.02], dtype=torch.float64)
    tail = stationary_distribution(q, Objective(lam_tail=-0.1, top_k=2))
    ratio = (tail[2] / tail[0]) / (q[2] / q[0])
    assert 0.90 < ratio < 0.925
    head = stationary_distribution(q, Objective(lam_head=0.1, top_k=4))
    ratio = (head[3] / head[0]) / (q[3] / q[0])
    assert 1.0 < ratio < 1.12


def test_an_invalid_distribution_raises() -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        stationary_distribution(torch.tensor([0.5, 0.6]), Objective())


def test_a_tempered_distribution_gives_its_temperature_and_no_divergence() -> None:
    q = data(3, 20)
    tempered = (q.log() / 0.7).softmax(-1)
    match = effective_temperature(q, tempered)
    torch.testing.assert_close(match.temperature, torch.full((3,), 0.7, dtype=torch.float64))
    assert match.divergence.abs().max() < 1e-9


def test_beta_is_nearly_a_temperature() -> None:
    q = data(5, 30)
    for beta, hotter in ((-0.25, False), (0.5, True)):
        match = effective_temperature(q, stationary_distribution(q, Objective(beta)))
        assert ((match.temperature > 1) == hotter).all()
        assert (match.divergence >= -1e-12).all()
        assert (match.divergence < 0.05).all()
    with pytest.raises(ValueError, match="no temperature"):
        effective_temperature(torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1]))


def test_rewards_are_those_of_the_paper() -> None:
    log_probs = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64).log()
    rewards = token_rewards(log_probs, torch.tensor([1]), Objective(0.5, 0.2, -0.3, 2))
    expected = [0.2, 0.7**0.5 / 0.3, -0.3, -0.3]
    torch.testing.assert_close(rewards, torch.tensor([expected], dtype=torch.float64))


@pytest.mark.parametrize("objective", [Objective(0.5), Objective(-0.25, 0.1, -0.1, 3)], ids=str)
def test_the_sampled_gradient_is_unbiased_and_its_variance_known(objective: Objective) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, dtype=torch.float64, generator=generator).requires_grad_()
    targets = torch.tensor([4, 1])
    exact = torch.autograd.grad(shaped_cross_entropy(logits, targets, objective, reduction="sum"), logits)[0]
    draws = []
    for _ in range(3000):
        loss = sampled_policy_gradient_loss(logits, targets, objective, num_samples=8, generator=generator).sum()
        draws.append(torch.autograd.grad(loss, logits)[0])
    sample = torch.stack(draws)
    error = sample.std(0) / len(draws) ** 0.5
    assert ((sample.mean(0) - exact).abs() < 4 * error).all()
    measured = sample.var(0).sum(-1)
    torch.testing.assert_close(
        measured, policy_gradient_variance(logits, targets, objective, num_samples=8), rtol=0.2, atol=0
    )


@pytest.mark.parametrize(
    ("wrong", "floor", "least"), [(1e-5, None, 1e-5), (1e-8, None, 1e-6), (1e-2, 0.1, 0.1), (0.2, 0.1, 0.2)]
)
def test_the_reward_of_a_nearly_certain_token_is_that_at_the_floor(
    wrong: float, floor: float | None, least: float
) -> None:
    log_probs = torch.tensor([[math.log1p(-wrong), math.log(wrong)]], dtype=torch.float64)
    options = {} if floor is None else {"floor": floor}
    rewards = token_rewards(log_probs, torch.tensor([0]), Objective(-0.25, top_k=1), **options)
    assert rewards[0, 0].item() == pytest.approx(least**-0.25 / (1 - wrong), rel=1e-6)


def test_the_samples_are_those_of_the_generator() -> None:
    logits, targets, state = torch.zeros(4, 50), torch.arange(4), torch.get_rng_state()

    def sampled(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        objective = Objective(0.5, 0.1, -0.1, 9)
        return sampled_policy_gradient_loss(logits, targets, objective, num_samples=3, generator=generator)

    assert torch.equal(sampled(1), sampled(1))
    assert not torch.equal(sampled(1), sampled(2))
    assert torch.equal(state, torch.get_rng_state())


def test_the_divergence_is_that_of_the_shaped_distribution_from_the_tempered_one() -> None:
    """KL(shaped || tempered) by SciPy; the other direction is 3 % smaller here."""
    q, shaped = torch.tensor([0.6, 0.3, 0.1]).double(), torch.tensor([0.5, 0.48, 0.02]).double()

    def tempered(t: float) -> torch.Tensor:
        return (q.log() / t).softmax(-1)

    t = brentq(lambda t: scipy_entropy(tempered(t)) - scipy_entropy(shaped), 0.01, 10)
    match = effective_temperature(q, shaped)
    assert match.temperature.item() == pytest.approx(t, rel=1e-6)
    assert match.divergence.item() == pytest.approx(scipy_entropy(shaped, tempered(t)), rel=1e-6)


@pytest.mark.parametrize("q", [[0.5, 0.49], [0.5, 0.51], [0.5, 0.50001], [1.1, -0.1]])
def test_what_is_no_distribution_is_refused(q: list[float]) -> None:
    with pytest.raises(ValueError, match=r"^q: it must be 0 or more everywhere and sum to 1"):
        stationary_distribution(torch.tensor(q, dtype=torch.float64), Objective(beta=0.5))


@pytest.mark.parametrize("temperature", [0.05, 0.5, 20.0, 200.0])
def test_a_temperature_far_from_one_is_found(temperature: float) -> None:
    logits = torch.linspace(0, 1, 10, dtype=torch.float64)
    found = effective_temperature(logits.softmax(-1), (logits / temperature).softmax(-1))
    assert found.temperature.item() == pytest.approx(temperature, rel=1e-3)
    assert found.divergence.item() == pytest.approx(0, abs=1e-6)
