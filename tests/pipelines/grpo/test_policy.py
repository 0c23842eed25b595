"""The frozen copy for the KL term: where it is, and that it does not follow the policy."""

from types import SimpleNamespace

import pytest
import torch

from pipelines.grpo.policy import Policy, Reference
from tests.pipelines.rollouts.test_transformers_engine import tiny

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("resident", "sharded", "moves"),
    [(False, False, ["cpu", "cpu"]), (True, False, ["cpu"]), (False, True, []), (True, True, [])],
)
def test_a_copy_that_is_not_resident_goes_back_to_main_memory(
    resident: bool, sharded: bool, moves: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = Reference(Policy(tiny()), resident=resident)
    reference.policy.is_sharded = sharded
    moved: list[str] = []
    monkeypatch.setattr(reference.policy, "to", lambda place: moved.append(str(place)))
    with reference.on(CPU) as policy:
        assert policy is reference.policy
        assert moved == moves[:1]
    assert moved == moves


def test_the_copy_is_frozen_and_keeps_the_weights_that_the_policy_had() -> None:
    model = tiny()
    before = model.lm_head.weight.detach().clone()
    reference = Reference(Policy(model), resident=True)
    with torch.no_grad():
        model.lm_head.weight += 1
    copy = reference.policy.model
    assert torch.equal(copy.lm_head.weight, before)
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    assert not copy.training


def test_a_sharded_copy_waits_in_main_memory_unless_it_is_resident(monkeypatch: pytest.MonkeyPatch) -> None:
    for resident in (True, False):
        reference = Reference(Policy(tiny()), resident=resident)
        asked = SimpleNamespace()
        monkeypatch.setattr(reference.policy, "shard", lambda mesh, asked=asked, **options: vars(asked).update(options))
        reference.shard(None)  # type: ignore[arg-type]
        assert vars(asked) == {"in_main_memory": not resident}
