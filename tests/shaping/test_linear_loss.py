"""The fused form against the loss on logits: values, gradients, memory, and use under compile and checkpointing."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from shaping import NAMED, Objective, linear_shaped_cross_entropy, shaped_cross_entropy
from shaping.loss_operators import LossSettings, hidden_states_passes

BOTH = Objective(-0.5, 0.2, -0.3, 7)
SETTINGS = [*(Objective(o.beta, o.lam_head, o.lam_tail, 7) for o in NAMED.values()), BOTH]


def problem(
    dtype: torch.dtype = torch.float64, *, rows: int = 37, width: int = 16, vocabulary: int = 50
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in ((rows, width), (vocabulary, width), (vocabulary,))
    )
    targets = torch.randint(0, vocabulary, (rows,), generator=generator)
    targets[3::5] = -100
    return hidden, weight, bias, targets


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("objective", SETTINGS, ids=str)
def test_it_equals_the_loss_on_logits(objective: Objective, reduction: str) -> None:
    hidden, weight, bias, targets = problem()
    ours = linear_shaped_cross_entropy(
        hidden,
        weight,
        targets,
        objective,
        bias=bias,
        reduction=reduction,
        chunk_size=8,  # type: ignore[call-overload]
    )
    theirs = shaped_cross_entropy(F.linear(hidden, weight, bias), targets, objective, reduction=reduction)  # type: ignore[call-overload]
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn_like(ours)
    leaves = (hidden, weight, bias)
    torch.testing.assert_close(
        torch.autograd.grad(ours, leaves, upstream), torch.autograd.grad(theirs, leaves, upstream)
    )


def test_finite_differences() -> None:
    """With beta = 0 nothing is held constant, so the slope of the value is the gradient."""
    hidden, weight, bias, targets = problem(rows=5, width=3, vocabulary=6)
    objective = Objective(lam_head=0.7, lam_tail=-0.6, top_k=2)
    for reduction in ("mean", "none"):
        torch.autograd.gradcheck(
            lambda *x, r=reduction: linear_shaped_cross_entropy(  # type: ignore[misc]
                x[0], x[1], targets, objective, bias=x[2], reduction=r, chunk_size=2
            ),
            (hidden, weight, bias),
            fast_mode=True,
        )


@settings(max_examples=25, deadline=None)
@given(chunk_size=st.integers(1, 40), rows=st.integers(0, 37))
def test_the_chunk_size_does_not_change_the_result(chunk_size: int, rows: int) -> None:
    hidden, weight, bias, targets = problem()
    whole, parts = (
        linear_shaped_cross_entropy(
            hidden[:rows], weight, targets[:rows], BOTH, bias=bias, reduction="sum", chunk_size=size
        )
        for size in (40, chunk_size)
    )
    torch.testing.assert_close(whole, parts)
    leaves = (hidden, weight, bias)
    torch.testing.assert_close(torch.autograd.grad(whole, leaves), torch.autograd.grad(parts, leaves))


def test_only_inputs_that_require_a_gradient_get_one() -> None:
    hidden, weight, bias, targets = problem()
    loss = linear_shaped_cross_entropy(hidden.detach(), weight, targets, BOTH, bias=bias.detach())
    loss.backward()
    assert weight.grad is not None
    loss = linear_shaped_cross_entropy(hidden, weight.detach(), targets, BOTH, bias=bias.detach())
    (gradient,) = torch.autograd.grad(loss, hidden)
    expected = shaped_cross_entropy(F.linear(hidden, weight, bias), targets, BOTH)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, hidden)[0])
    with torch.no_grad():
        assert not linear_shaped_cross_entropy(hidden, weight, targets, BOTH).requires_grad


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returns.

    The operator is replaced by its Python function, so that the operations in it are seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if function is torch.ops.shaping.hidden_states_passes.default:
            with self:
                return hidden_states_passes._init_fn(*args, **(kwargs or {}))
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.numel())
        return result


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("objective", [Objective(), BOTH, Objective(0, 0.1, -0.1, 299)], ids=str)
def test_no_tensor_of_rows_by_vocabulary_exists(objective: Objective, reduction: str) -> None:
    hidden, weight, bias, targets = problem(torch.float32, rows=200, width=8, vocabulary=300)
    with Largest() as seen:
        loss = linear_shaped_cross_entropy(
            hidden,
            weight,
            targets,
            objective,
            bias=bias,
            reduction=reduction,
            chunk_size=16,  # type: ignore[call-overload]
        )
        loss.sum().backward()
    assert 16 * 300 <= seen.elements <= 2 * 16 * 300


def test_two_backward_passes_agree() -> None:
    hidden, weight, _, targets = problem()
    loss = linear_shaped_cross_entropy(hidden, weight, targets, BOTH)
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, (hidden, weight)), first, atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_in_float32(dtype: torch.dtype) -> None:
    """128 chunks that each add little to the weight's gradient: a sum in bfloat16 would have an error of 2 %."""
    hidden, weight, _, targets = problem(dtype, rows=1024)
    targets = targets.abs().clamp(max=1)
    loss = linear_shaped_cross_entropy(hidden, weight, targets, BOTH, reduction="sum", chunk_size=8)
    assert loss.dtype == torch.float32
    ours = torch.autograd.grad(loss, (hidden, weight))
    assert [g.dtype for g in ours] == [dtype, dtype]
    exact = (hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_())
    theirs = torch.autograd.grad(shaped_cross_entropy(exact[0] @ exact[1].t(), targets, BOTH, reduction="sum"), exact)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.double() - b).norm() < 0.01 * b.norm()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("rows", "size"), [(8192, 10.0), (70_000, 1.0), (512, 300.0)])
def test_float16_sums_beyond_its_range(reduction: str, rows: int, size: float) -> None:
    """Gradients whose sum over rows exceeds 65,504, but not their mean; a sum that exceeds it is infinite."""
    generator = torch.Generator().manual_seed(0)
    hidden, bias = torch.full((rows, 4), size), torch.zeros(32)
    weight = 0.01 * torch.randn(32, 4, generator=generator)
    targets = torch.zeros(rows, dtype=torch.int64)
    gradients = []
    for dtype in (torch.float64, torch.float16):
        inputs = [tensor.half().to(dtype).requires_grad_() for tensor in (hidden, weight, bias)]
        loss = linear_shaped_cross_entropy(
            inputs[0],
            inputs[1],
            targets,
            Objective(-0.25),
            bias=inputs[2],
            reduction=reduction,  # type: ignore[call-overload]
        )
        (loss.sum() / rows if reduction == "sum" else loss.mean()).backward()
        gradients.append([tensor.grad for tensor in inputs])
        assert [tensor.grad.dtype for tensor in inputs if tensor.grad is not None] == [dtype] * 3
    for expected, actual in zip(*gradients, strict=True):
        assert actual.isfinite().all()
        # Losses that stay apart have gradients of 1/N each, which are near the smallest float16 numbers.
        rtol, atol = (0.05, 1e-2) if reduction == "none" else (5e-3, 2e-3)
        torch.testing.assert_close(actual.double(), expected, rtol=rtol, atol=atol)


def test_autocast_multiplies_in_its_type_and_returns_float32_gradients() -> None:
    hidden, weight, bias, targets = problem(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours = linear_shaped_cross_entropy(hidden, weight, targets, BOTH, bias=bias, chunk_size=8)
        theirs = shaped_cross_entropy(F.linear(hidden, weight, bias), targets, BOTH)
    assert ours.dtype == theirs.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, atol=1e-2, rtol=1e-2)
    leaves = (hidden, weight, bias)
    for a, b in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 0.02 * b.norm()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_torch_compile_has_no_graph_break(reduction: str) -> None:
    hidden, weight, bias, targets = problem(torch.float32)

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        fused = linear_shaped_cross_entropy(
            hidden.tanh(),
            weight,
            targets,
            BOTH,
            bias=bias,
            reduction=reduction,
            chunk_size=8,  # type: ignore[call-overload]
        )
        logits, statistics = shaped_cross_entropy(hidden @ weight.t(), targets, BOTH, return_stats=True)
        return fused.sum() + logits + statistics.entropy.sum()

    leaves = (hidden, weight, bias)
    ours = torch.compile(loss, fullgraph=True, backend="aot_eager")(*leaves)
    theirs = loss(*leaves)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves))


def test_the_operators_declare_shapes_types_and_mutation_correctly() -> None:
    """Of logits, and of hidden states with and without a bias, in one type and under autocast."""
    hidden, weight, bias, targets = (x.detach() for x in problem(torch.float32))
    logits, logits_targets = weight, torch.arange(50) % 16
    settings = LossSettings(0.5, 0.1, -0.1, 7, 1e-6, -100, "torch", True, torch.float32, 8)
    operators = torch.ops.shaping
    state, head = operators.logits_forward(logits, logits_targets, **settings._asdict())[2:]
    calls: list[tuple[Any, tuple[Tensor | None, ...], dict[str, Any]]] = [
        (operators.logits_forward, (logits, logits_targets), {}),
        (operators.logits_backward, (logits.t().clone().t(), logits_targets, torch.rand(50), state, head), {}),
        (operators.hidden_states_passes, (hidden, weight, bias, targets, None), {"wanted": [True] * 3}),
        (
            operators.hidden_states_passes,
            (hidden, weight, None, targets, torch.rand(37)),
            {"wanted": [True, True, False], "product": torch.bfloat16},
        ),
    ]
    for operator, tensors, options in calls:
        torch.library.opcheck(
            operator.default,
            tensors,
            {**settings._asdict(), **options},
            test_utils=("test_schema", "test_faketensor"),
        )


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing(use_reentrant: bool) -> None:
    hidden, weight, _, targets = problem()
    gradients = []
    for wrapped in (True, False):
        x = hidden.tanh()
        if wrapped:
            loss = checkpoint(
                lambda x, w: linear_shaped_cross_entropy(x, w, targets, BOTH), x, weight, use_reentrant=use_reentrant
            )
        else:
            loss = linear_shaped_cross_entropy(x, weight, targets, BOTH)
        gradients.append(
            torch.autograd.grad(loss, (hidden, weight))
            if not (wrapped and use_reentrant)
            else _gradients_of_backward(loss, hidden, weight)
        )
    torch.testing.assert_close(*gradients)


def _gradients_of_backward(loss: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    """Reentrant checkpointing supports only backward(), not torch.autograd.grad()."""
    loss.backward()
    return tuple(leaf.grad for leaf in leaves)  # type: ignore[misc]


def test_tied_embeddings() -> None:
    gradients = []
    for fused in (True, False):
        torch.manual_seed(0)
        embedding = nn.Embedding(30, 8)
        ids = torch.arange(20)
        hidden = embedding(ids).tanh()
        if fused:
            linear_shaped_cross_entropy(hidden, embedding.weight, ids, BOTH).backward()
        else:
            shaped_cross_entropy(hidden @ embedding.weight.t(), ids, BOTH).backward()
        gradients.append(embedding.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("shape", [(37,), (1, 37)])
def test_statistics_equal_those_of_the_logits(shape: tuple[int, ...]) -> None:
    hidden, weight, bias, targets = problem()
    hidden, targets = hidden.view(*shape, -1), targets.view(shape)
    loss, ours = linear_shaped_cross_entropy(hidden, weight, targets, BOTH, bias=bias, chunk_size=8, return_stats=True)
    theirs = shaped_cross_entropy(F.linear(hidden, weight, bias), targets, BOTH, return_stats=True)[1]
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == shape
        torch.testing.assert_close(a, b, equal_nan=True)
    loss.backward()


def test_all_targets_ignored() -> None:
    hidden, weight, _, targets = problem()
    for rows in (0, 5):
        ignored = torch.full_like(targets[:rows], -100)
        total = linear_shaped_cross_entropy(hidden[:rows], weight, ignored, BOTH, reduction="sum")
        assert total == 0
        assert not any(g.any() for g in torch.autograd.grad(total, (hidden, weight)))
        assert linear_shaped_cross_entropy(hidden[:rows], weight, ignored, BOTH).isnan()  # as F.cross_entropy


@pytest.mark.parametrize("ignored", [[], [0], [1, 2, 5], [0, 1, 2, 3, 4, 5]], ids=len)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignore_index", [-100, 3, -1])
def test_ignored_targets_are_those_of_cross_entropy(ignore_index: int, reduction: str, ignored: list[int]) -> None:
    """Values and gradients, with NaN and zeros where all are ignored; knobs near 0 so that our own code computes."""
    hidden, weight, bias, _ = problem(rows=6)
    targets = torch.tensor([1, 0, 2, 4, 49, 5])
    targets[ignored] = ignore_index
    options: Any = {"ignore_index": ignore_index, "reduction": reduction}
    leaves = (hidden, weight, bias)
    theirs = F.cross_entropy(F.linear(*leaves), targets, **options)
    expected = torch.autograd.grad(theirs.sum(), leaves)
    for objective in (Objective(), Objective(1e-14)):
        for ours in (
            linear_shaped_cross_entropy(hidden, weight, targets, objective, bias=bias, chunk_size=4, **options),
            shaped_cross_entropy(F.linear(*leaves), targets, objective, **options),
            shaped_cross_entropy(
                F.linear(*leaves), targets, objective, weight=torch.full((6,), 0.7).double(), **options
            )
            / (1 if reduction == "mean" else 0.7),
        ):
            torch.testing.assert_close(ours, theirs, equal_nan=True)
            torch.testing.assert_close(torch.autograd.grad(ours.sum(), leaves, retain_graph=True), expected)


def test_inputs_that_are_not_contiguous() -> None:
    hidden, weight, _, targets = problem()
    strided = torch.randn(16, 74, dtype=torch.float64).t()[::2]
    for h, w in ((strided, weight), (hidden, torch.randn(16, 50, dtype=torch.float64).t())):
        torch.testing.assert_close(
            linear_shaped_cross_entropy(h, w, targets.int(), BOTH), shaped_cross_entropy(h @ w.t(), targets, BOTH)
        )


TRANSFORMS: dict[str, Any] = {
    "grad": torch.func.grad,
    "vjp": lambda loss: lambda x: torch.func.vjp(loss, x),
    "jvp": lambda loss: lambda x: torch.func.jvp(loss, (x,), (x,)),
    "vmap": lambda loss: lambda x: torch.func.vmap(loss)(torch.stack([x, x])),
    "jacrev": torch.func.jacrev,
    "jacfwd": torch.func.jacfwd,
    "hessian": torch.func.hessian,
    "grad_and_value": torch.func.grad_and_value,
    "vmap of grad": lambda loss: lambda x: torch.func.vmap(torch.func.grad(loss))(torch.stack([x, x])),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_function_transforms_are_refused_in_a_sentence(name: str) -> None:
    hidden, weight, _, targets = problem(rows=5)
    for loss in (
        lambda x: linear_shaped_cross_entropy(x, weight, targets, BOTH),
        lambda x: shaped_cross_entropy(x @ weight.t(), targets, BOTH),
        lambda x: shaped_cross_entropy(x @ weight.t(), targets, Objective(), return_stats=True)[0],
    ):
        with pytest.raises(RuntimeError, match=r"does not work within the transforms of torch\.func") as error:
            TRANSFORMS[name](loss)(hidden.detach())
        assert "\n" not in str(error.value)
    # Plain cross-entropy is PyTorch's own.
    plain = TRANSFORMS[name](lambda x: shaped_cross_entropy(x @ weight.t(), targets, Objective()))
    theirs = TRANSFORMS[name](lambda x: F.cross_entropy(x @ weight.t(), targets))
    if name != "vjp":
        torch.testing.assert_close(plain(hidden.detach()), theirs(hidden.detach()))


def test_parameters_given_by_functional_call() -> None:
    """It replaces a module's parameters without a transform."""
    hidden, weight, _, targets = problem()

    class Layer(nn.Linear):
        def forward(self, hidden: Tensor) -> Tensor:
            return linear_shaped_cross_entropy(hidden, self.weight, targets, BOTH)

    loss = torch.func.functional_call(Layer(16, 50, bias=False).double(), {"weight": weight}, (hidden,))
    torch.testing.assert_close(loss, shaped_cross_entropy(hidden @ weight.t(), targets, BOTH))


def test_second_derivatives_raise() -> None:
    hidden, weight, _, targets = problem()
    loss = linear_shaped_cross_entropy(hidden, weight, targets, BOTH)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, hidden, create_graph=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_states": torch.zeros(2, 4, dtype=torch.long)}, "hidden_states has type"),
        ({"targets": torch.zeros(3, dtype=torch.long)}, r"\[N, D\] and \[N\]"),
        ({"targets": torch.tensor([0, 6])}, "targets contain 6"),
        ({"lm_head_weight": torch.zeros(6, 5)}, r"lm_head_weight \[6, 5\]: its shape must be \[V, 4\]$"),
        ({"lm_head_weight": torch.zeros(4, 6)}, r"\[4, 6\]: its shape must be \[V, 4\], its transpose: pass lm_head"),
        ({"lm_head_weight": torch.zeros(6)}, r"lm_head_weight \[6\]: its shape must be"),
        ({"lm_head_weight": torch.tensor(1.0)}, r"lm_head_weight \[\]: its shape must be"),
        ({"lm_head_weight": nn.Linear(4, 6)}, "lm_head_weight is of type Linear: pass the layer's weight"),
        ({"hidden_states": [[0.0] * 4] * 2}, "hidden_states is of type list: it must be a tensor"),
        ({"targets": [0, 1]}, "targets is of type list: it must be a tensor"),
        ({"bias": torch.zeros(5)}, r"bias \[5\]"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"objective": Objective(lam_tail=1, top_k=7)}, "top_k=7"),
        ({"reduction": "avg"}, "reduction='avg'"),
        ({"backend": "cuda"}, "backend='cuda'"),
    ],
)
def test_wrong_arguments_are_named(change: dict, message: str) -> None:
    arguments = {
        "hidden_states": torch.zeros(2, 4),
        "lm_head_weight": torch.zeros(6, 4),
        "targets": torch.tensor([0, 1]),
        "objective": Objective(0.5),
    } | change
    with pytest.raises(ValueError, match=message):
        linear_shaped_cross_entropy(**arguments)
