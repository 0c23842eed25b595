"""Impossible cells are rejected with one sentence that names key, value and fix."""

import re

import pytest

from pipelines.errors import UserError, nearest
from sweeps.compose.cells import compose_cell


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective.beta=nan", "objective.beta=nan: it must be a finite number"),
        ("objective.lam_tail=inf", "objective.lam_tail=inf: it must be a finite number"),
        ("objective.beta=-1.5", "objective.beta=-1.5: it must be above -1"),
        ("objective.top_k=100000", "objective.top_k=100000: the head cannot be larger than the vocabulary"),
        ("objective.top_k=0", "objective.top_k=0"),
        ("pretrain.tokens=0", "pretrain.tokens=0: it must be finite and above 0"),
        ("midtrain.tokens=-5", "midtrain.tokens=-5"),
        ("grpo.steps=0", "grpo.steps=0"),
        ("grpo.samples=1", "grpo.samples=1: a group needs at least 2"),
        ("model.kv_heads=3", "model.kv_heads=3: it must divide model.heads=4"),
        ("model.head_dim=7", "model.head_dim=7: it must be even"),
        ("pretrain.batch_tokens=100", "pretrain.batch_tokens=100: it must be a multiple"),
        ("pretrain.milestones=99999", "pretrain.milestones=99999: a budget of"),
        ("pretrain.warmup_steps=99999", "pretrain.warmup_steps=99999"),
        ("midtrain.final_learning_rate=1", "midtrain.final_learning_rate=1.0: the rate decays"),
        ("midtrain.sequence_length=32", "midtrain.sequence_length=32: mid-training does not shorten"),
        ("midtrain.decay=cosin", "did you mean 'cosine'"),
        ("grpo.tasks=[chian3]", "grpo.tasks=chian3: did you mean 'chain3'"),
        ("+pretrain.mixture.txt=1", "pretrain.mixture=txt: did you mean 'text'"),
        ("data.tasks=[chain9]", "data.tasks=chain9: did you mean 'chain"),
        ("data.text=[numpyy]", "data.text=numpyy: no such package is installed"),
        ("data.text=[json]", "data.text=json: its version is part of signatures"),
        ("data.vocab_size=100", "data.vocab_size=100"),
        ("data.top_k=1000", "data.top_k=1000: a head is part of the vocabulary: at most data.vocab_size=640"),
        ("pretrain.weight_decay=inf", "pretrain.weight_decay=inf: it must be finite"),
        ("grpo.adam_beta1=1.5", r"grpo.adam_beta1=1.5: it must be in \[0, 1\)"),
        ("data.worked_share=1.5", "data.worked_share=1.5: it must be between 0 and 1"),
        ("until=rl", "until=rl: it is one of: pretrain, midtrain, grpo"),
        ("seed=-1", "seed=-1"),
        ("evaluation.benchmarks.Chain-3.items=0", "evaluation.benchmarks.Chain-3.items=0"),
        ("evaluation.benchmarks.Chain-3.kind=sample", "did you mean 'sampled'"),
        ("evaluation.benchmarks.Chain-3.task=chain", "evaluation.benchmarks.Chain-3.task=chain: did you mean 'chain"),
        ("tracking.mode=onlin", "tracking.mode=onlin: did you mean 'online'"),
        # types and names, which the structured configuration checks
        ("objective.beta=flat", "objective.beta=flat: it must be a number"),
        ("seed=x", "seed=x: it must be a whole number"),
        ("pretrain.tokenz=5", "pretrain.tokenz: unknown key; did you mean 'pretrain.tokens'"),
        ("+grpo.kl=0.1", "grpo.kl: unknown key"),
        ("objective=precison", "objective=precison: unknown option; did you mean 'precision'"),
        ("compute.strategy=dp", "compute.strategy=dp: did you mean 'ddp'"),
        (
            "compute.micro_batch_tokens=7",
            "compute.micro_batch_tokens=7: a rank's share .* values that fit: 64, 128, 256",
        ),
        ("grpo.tasks=[no.jsonl]", "grpo.tasks=no.jsonl: no such file"),
        ("evaluation.benchmarks.Chain-3.dataset=gsm8k", "dataset=gsm8k: questions of a `sampled` benchmark come from"),
        ("evaluation.controls={matched: [evaluate]}", "evaluation.controls.matched=evaluate: it is one of: pretrain"),
        (
            "evaluation.max_new_tokens=65",
            r"evaluation.max_new_tokens=65: models after pretrain are trained on pretrain",
        ),
        ("evaluation.text_length=65", r"text_length=65: .* trained on pretrain.sequence_length=64; lower this"),
        ("+evaluation.stage_max_new_tokens.grpo=129", r"stage_max_new_tokens.grpo=129: .*midtrain.sequence_length=128"),
        ("evaluation.benchmarks.Python.max_new_tokens=99", r"Python.max_new_tokens=99: .*pretrain.sequence_length=64"),
        ("grpo.max_new_tokens=129", r"grpo.max_new_tokens=129: .* trained on midtrain.sequence_length=128"),
        ("grpo.extended_from_step=9", r"grpo.extended_max_new_tokens=16384: .*midtrain.sequence_length=128"),
        ("sweep=nano", r"write \+sweep=NAME"),
    ],
)
def test_mistakes_are_found_at_composition(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        compose_cell([override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "override",
    ["evaluation.max_new_tokens=64", "+evaluation.stage_max_new_tokens.grpo=128", "grpo.max_new_tokens=128"],
)
def test_lengths_up_to_that_of_the_training_rows_are_possible(override: str) -> None:
    part, *_, value = re.split(r"[.=]", override.removeprefix("+"))
    assert value in str(getattr(compose_cell([override]), part))


def test_longer_rows_allow_longer_answers() -> None:
    longer = compose_cell(["evaluation.max_new_tokens=65", "pretrain.sequence_length=128"])
    assert longer.evaluation.max_new_tokens == 65
    # Only the stages that the cell has count.
    assert compose_cell(["grpo.max_new_tokens=129", "until=midtrain"]).grpo.max_new_tokens == 129


def test_a_source_is_named() -> None:
    with pytest.raises(UserError, match=r"data\.sources\.web\.kind=txt: did you mean 'text'"):
        compose_cell(["model=4B", "data=paper", "data.sources.web.kind=txt"])


def test_nearest_suggests_an_allowed_word() -> None:
    assert nearest("cee", ["ce", "precision"]) == "did you mean 'ce'? (one of: ce, precision)"
    assert nearest("zzz", ["ce", "precision"]) == "it is one of: ce, precision"
