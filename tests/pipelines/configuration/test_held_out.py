"""Checks at composition that a stage will find training and held-out rows and questions."""

import json
from pathlib import Path

import pytest

from pipelines.configuration.data import DataConfig, SourceConfig
from pipelines.configuration.held_out import check_shard_rows
from pipelines.errors import UserError
from pipelines.tasks.families import split_of
from sweeps.compose.cells import compose_cell

BARE = [
    "data.text=[]",
    "data.tasks=[]",
    "+data.sources.mine={kind:jsonl,path:a.jsonl}",
    "until=midtrain",
    "evaluation.benchmarks={Mine:{kind:text,group:text,task:mine,items:8}}",
    "pretrain.mixture={mine:1}",
    "midtrain.mixture={mine:1}",
]


def shards(folder: Path, sources: dict[str, dict[str, list[int]]]) -> str:
    """An index as of token shards with these tokens."""
    folder.mkdir()
    content = {
        name: {split: [{"tokens": count} for count in counts] for split, counts in splits.items()}
        for name, splits in sources.items()
    }
    (folder / "index.json").write_text(json.dumps({"sources": content}))
    return f"data.shards={folder}"


def refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as refused:
        compose_cell(list(overrides))
    message = str(refused.value)
    assert "\n" not in message
    return message


def test_shards_have_rows_of_every_source_that_is_mixed_in_or_measured(tmp_path: Path) -> None:
    whole = shards(tmp_path / "whole", {"mine": {"train": [1000], "validation": [200]}})
    compose_cell([*BARE, whole])
    compose_cell([*BARE, f"data.shards={tmp_path / 'later'}"])  # may be prepared on another machine
    no_text = shards(tmp_path / "no_text", {"mine": {"train": [1000], "validation": [60, 30]}})
    message = refusal(*BARE, no_text)
    assert message.startswith("evaluation.benchmarks.Mine.task=mine: the held-out text of mine in data.shards=")
    assert "has 90 tokens, and a row has 65; prepare the shards with a larger --validation" in message
    compose_cell([*BARE, no_text, "evaluation.text_length=59"])
    other = shards(tmp_path / "other", {"yours": {"train": [1000], "validation": [200]}})
    assert "pretrain.mixture.mine=1.0: the token shards in" in refusal(*BARE, other)
    assert "have no source mine; make them again" in refusal(*BARE, other)


def test_a_choice_is_never_among_nothing() -> None:
    mixed = [*BARE[:2], "until=midtrain", "pretrain.mixture={mine:1}"]
    assert refusal(*mixed).startswith("pretrain.mixture.mine=1.0: the data have neither text nor tasks nor sources")
    measured = [word.replace("task:mine", "task:text") for word in BARE]
    assert "data.text is empty" in refusal(*measured)
    assert refusal(*BARE, "pretrain.mixture={main:1}") == "pretrain.mixture=main: did you mean 'mine'? (one of: mine)"


def test_a_family_and_a_file_have_questions_in_each_split_that_is_asked(tmp_path: Path) -> None:
    message = refusal("data.tasks_per_family=4")
    assert "the family has 4 questions and none in the split" in message
    assert message.endswith("raise data.tasks_per_family")
    lines = [json.dumps({"question": f"{i}+1?", "answer": i + 1}) for i in range(200)]
    held_out = [line for line in lines if split_of(json.loads(line)["question"]) == "validation"]
    few, all_held_out = tmp_path / "few.jsonl", tmp_path / "held_out.jsonl"
    few.write_text("\n".join(line for line in lines if line not in held_out))
    all_held_out.write_text("\n".join(held_out))
    assert f"grpo.tasks={few}: of its {200 - len(held_out)} questions there is none that its hash holds out" in refusal(
        f"grpo.tasks=[{few}]"
    )
    assert "there is none to train on" in refusal(f"grpo.tasks=[{all_held_out}]")
    whole = tmp_path / "whole.jsonl"
    whole.write_text("\n".join(lines))
    compose_cell([f"grpo.tasks=[{whole}]"])


@pytest.mark.parametrize(("tokens", "has_a_row"), [([64, 64], False), ([3, 65], True)])
def test_a_row_takes_one_token_more_than_its_length_from_one_shard(
    tmp_path: Path, tokens: list[int], has_a_row: bool
) -> None:
    shards(tmp_path / "shards", {"mine": {"train": tokens, "validation": []}})
    data = DataConfig("d", sources={"mine": SourceConfig("jsonl", "a.jsonl")}, shards=str(tmp_path / "shards"))
    refused: UserError | None = None
    try:
        check_shard_rows("pretrain.mixture.mine", 1.0, data=data, source="mine", split="train", length=64)
    except UserError as error:
        refused = error
    assert (refused is None) == has_a_row
