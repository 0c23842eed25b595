"""Cells whose chain begins with a checkpoint of somebody else: what cannot be done from it is said when composed."""

from pathlib import Path

import pytest

from pipelines.configuration.start import StartConfig
from pipelines.data.corpus import Corpus
from pipelines.errors import UserError
from sweeps.compose.cells import compose_cell
from tests.conftest import SMALL
from tests.small_starts import save_start

RL = [word for word in SMALL if not word.startswith(("model.", "data.vocab_size", "pretrain.", "midtrain."))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus) -> Path:
    """A model of 256 positions whose tokenizer has no chat template."""
    return save_start("qwen3", tmp_path_factory.mktemp("start") / "model", corpus.tokenizer)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["start.stage=grpo", "until=midtrain"],
            r"^start\.stage=grpo: until=midtrain ends before it; set until=grpo, or an earlier start\.stage$",
        ),
        (
            ["start.prompts=chat"],
            r"^start\.prompts=chat: the tokenizer of start\.checkpoint has no chat template; leave start\.prompts out$",
        ),
        (
            ["start.stage=midtrain", "midtrain.sequence_length=512"],
            r"^midtrain\.sequence_length=512: the model of start\.checkpoint has 256 positions; lower it$",
        ),
    ],
)
def test_what_a_start_cannot_do_is_named(folder: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose_cell([*RL, f"start.checkpoint={folder}", *overrides])


def test_the_stages_are_those_from_the_start_on(folder: Path) -> None:
    cell = compose_cell([*RL, f"start.checkpoint={folder}", "start.stage=midtrain", "midtrain.sequence_length=256"])
    assert cell.stages == ("midtrain", "grpo")
    assert compose_cell([*RL, f"start.checkpoint={folder}"]).stages == ("grpo",)


@pytest.mark.parametrize("stage", ["pretrain", "midtrain"])
def test_new_weights_have_no_base_of_their_own(stage: str) -> None:
    with pytest.raises(UserError, match=rf"^{stage}\.rope_base=null: only the model of a start checkpoint has one"):
        compose_cell([*SMALL, f"{stage}.rope_base=null"])


@pytest.mark.parametrize("checkpoint", ["models/mine", "models/mine/", "org/mine", "mine"])
def test_a_start_is_called_by_the_last_part_of_its_path(checkpoint: str) -> None:
    assert StartConfig(checkpoint).label == "mine"
    assert StartConfig(checkpoint, name="other").label == "other"
