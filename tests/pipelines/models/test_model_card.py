"""The README.md of a checkpoint, as it is written."""

from typing import Any

from pipelines.models.model_card import model_card

SPEC: dict[str, Any] = {
    "stage": "midtrain",
    "signature": "abc",
    "version": 3,
    "parent": {"stage": "pretrain", "signature": "def"},
    "checkpoint": "step-000781",
    "labels": {"model": "nano", "objective": "precision", "seed": 4},
    "config": {"objective": {"beta": -0.25}, "data": {"text": ["sympy"]}, "midtrain": {"tokens": 450000}, "seed": 4},
}

CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [shaping]
---
# nano/precision/4: midtrain, step 878

A causal language model of 366,384 parameters, trained by [Shaping](https://arxiv.org/abs/2512.22955); load it with \
`AutoModelForCausalLM.from_pretrained`.

| | |
|---|---|
| stage run | `midtrain/abc`, version 3 |
| parent | `pretrain/def`, step-000781 |
| objective | beta -0.25 |
| data | text ["sympy"] |
| budget | tokens 450000 |
| seed | 4 |
"""


def test_a_card_has_data_objective_budget_and_newest_metrics() -> None:
    row = {"step": 878, "loss": 2.3456789, "time": 1.7e9, "note": "text"}
    metrics = "\n## Training metrics of the newest ledger row\n\n| | |\n|---|---|\n| step | 878 |\n| loss | 2.34568 |\n"
    assert model_card(SPEC, step=878, parameters=366_384, row=row) == CARD + metrics
    assert model_card(SPEC, step=878, parameters=366_384, row={}) == CARD


def test_a_first_stage_has_no_parent_and_rl_no_objective() -> None:
    spec = SPEC | {"stage": "grpo", "parent": None, "config": {"data": {}, "grpo": {"steps": 20}, "seed": 4}}
    card = model_card(spec, step=20, parameters=9, row={})
    assert "| parent | none |" in card
    assert "| objective | GRPO |" in card
    assert "| budget | steps 20 |" in card
