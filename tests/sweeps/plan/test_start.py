"""What planning makes of a start checkpoint, and the sentences about what cannot be one."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipelines.configuration.data import DataConfig
from pipelines.data.corpus import prepare
from pipelines.errors import UserError
from sweeps.compose.cells import compose_cell, compose_cells
from sweeps.plan.cost import storage, work
from sweeps.plan.device_memory import shortage
from sweeps.plan.planner import plan
from tests.small_starts import save_start

TEXT = ["data.text=[networkx]", "data.tasks_per_family=300", "data.top_k=8"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with the tokenizer of a small corpus."""
    folder = tmp_path_factory.mktemp("start")
    corpus = prepare(DataConfig("t", ["networkx"], ["chain3"], 300, 0.5, 0.5, 300, 8), folder / "cache")
    return save_start("llama", folder / "small-llama", corpus.tokenizer)


def edited(model: Path, folder: Path, **changes: Any) -> Path:
    """A copy of the model with another `config.json`."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


def test_a_start_is_step_0_of_the_first_stage(model: Path) -> None:
    graph = plan([compose_cell([*TEXT, f"start.checkpoint={model}", "start.stage=midtrain"])])
    runs = list(graph.runs.values())
    assert [run.stage for run in runs if run.stage != "evaluate"] == ["start", "midtrain", "grpo"]
    start, first = runs[0], next(run for run in runs if run.stage == "midtrain")
    assert (first.parent, first.checkpoint) == (("start", start.signature), "step-000000")
    measured = [run for run in runs if run.stage == "evaluate" and run.parent == ("start", start.signature)]
    assert [(run.checkpoint, run.labels["tokens"]) for run in measured] == [("step-000000", 0)]
    assert start.labels["model"] == "small-llama"
    assert list(graph.cells) == ["small-llama/ce/seed1"]
    # 304 x 32 twice, two layers of attention (32 x 8 x 12), feed-forward (3 x 32 x 48) and norms: about 33 thousand.
    assert 30_000 < storage(graph, start) / 4 < 40_000
    assert work(graph, start).training == 0
    # The small model has 256 positions, which end prompt and response.
    assert all(shortage(graph, run, 1, device="h100") is None for run in runs)


def test_all_seeds_and_objectives_share_a_start(model: Path, tmp_path: Path) -> None:
    cells = compose_cells(
        [*TEXT, f"start.checkpoint={model}", "start.stage=midtrain", "seed=1,2", "objective=ce,diversity"]
    )
    runs = plan(cells).runs.values()
    assert sum(run.stage == "start" for run in runs) == 1
    assert sum(run.stage == "grpo" for run in runs) == 4


def test_the_content_is_signed_and_the_path_and_the_name_are_not(model: Path, tmp_path: Path) -> None:
    def signatures(folder: Path, *more: str) -> set[str]:
        return set(plan([compose_cell([*TEXT, f"start.checkpoint={folder}", *more])]).runs)

    moved = edited(model, tmp_path / "moved")
    (moved / "config.json").write_bytes((model / "config.json").read_bytes())
    (moved / "README.md").write_text("not loaded")
    assert signatures(moved, "start.name=other") == signatures(model)
    assert not signatures(edited(model, tmp_path / "other", rms_norm_eps=1e-3)) & signatures(model)
    # A chat template changes prompts, so RL and every evaluation, but not the start.
    template = {"chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}"}
    settings = json.loads((moved / "tokenizer_config.json").read_text()) | template
    (moved / "tokenizer_config.json").write_text(json.dumps(settings))
    shared = signatures(moved) & signatures(moved, "start.prompts=chat")
    assert len(shared) == 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"architectures": ["BertForMaskedLM"]}, "names BertForMaskedLM, which is no causal language model"),
        ({"architectures": None}, "names no class, which is no causal language model"),
        ({"vocab_size": 100}, "its tokenizer has 300 tokens and its model only 100"),
        ({"hidden_size": None}, "its config.json has no hidden_size"),
        ({"max_position_embeddings": 32}, "the model of start.checkpoint has 32 positions; lower it"),
    ],
)
def test_a_model_that_cannot_be_continued_is_refused(
    model: Path, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    folder = edited(model, tmp_path / "edited", **changes)
    with pytest.raises(UserError, match=sentence) as error:
        compose_cell([*TEXT, f"start.checkpoint={folder}"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("removed", "sentence"),
    [
        ("config.json", "it has no config.json"),
        ("tokenizer.json", "it has no tokenizer.json; save its tokenizer into the folder"),
        ("model.safetensors", "it has no model.safetensors; weights in other files are not read"),
    ],
)
def test_a_folder_without_what_is_needed_is_refused(model: Path, tmp_path: Path, removed: str, sentence: str) -> None:
    folder = edited(model, tmp_path / "edited")
    (folder / removed).unlink()
    with pytest.raises(UserError, match=sentence):
        compose_cell([*TEXT, f"start.checkpoint={folder}"])


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["start.checkpoint=./nowhere"], "start.checkpoint=./nowhere: there is no such folder"),
        (["start.checkpoint={model}", "start.stage=grpo", "until=midtrain"], "start.stage=grpo: until=midtrain ends"),
        (["start.checkpoint={model}", "start.stage=sft"], "start.stage=sft: .*one of: pretrain, midtrain, grpo"),
        (["start.checkpoint={model}", "midtrain.tokens=4096"], "midtrain.tokens=4096: midtrain does not run"),
        (["start.checkpoint={model}", "pretrain=paper"], "pretrain=paper: pretrain does not run"),
        (["start.checkpoint={model}", "model=20M"], "model=20M: the model is that of start.checkpoint"),
        (["start.checkpoint={model}", "data.vocab_size=400"], "the tokenizer is that of start.checkpoint"),
        (
            ["start.checkpoint={model}", "start.stage=midtrain", "midtrain.rope_base=1e6"],
            "keeps its positions; leave it out",
        ),
        (["start.checkpoint={model}", "start.revision=main"], "is a folder, which has none"),
        (["start.checkpoint={model}", "start.prompts=chat"], "has no chat template"),
        (["start.checkpoint={model}", "objective.top_k=1000"], "that of start.checkpoint, which has 304"),
        (["start.stage=midtrain"], "start.stage=midtrain: nothing starts from a checkpoint"),
        (["pretrain.rope_base=null"], "pretrain.rope_base=null: only the model of a start checkpoint"),
    ],
)
def test_a_mistake_gets_a_sentence(model: Path, overrides: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        compose_cell([*TEXT, *(word.format(model=model) for word in overrides)])


def test_a_vocabulary_that_cannot_write_an_answer_is_refused(model: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = edited(model, tmp_path / "edited")
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(folder / "tokenizer.json"))
    with pytest.raises(UserError, match=r"which the tokenizer of start\.checkpoint turns into"):
        compose_cell([*TEXT, f"start.checkpoint={folder}"])


def test_a_hub_that_cannot_be_reached_gets_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(UserError, match="hf download some/model --local-dir FOLDER and give the folder"):
        compose_cell([*TEXT, "start.checkpoint=some/model"])


def test_a_model_on_the_hub_is_signed_by_its_commit(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(model, tmp_path / commit)
    (tmp_path / commit / "model.safetensors").unlink()  # planning downloads small files only
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path / commit))
    graph = plan([compose_cell([*TEXT, "start.checkpoint=org/small"])])
    start = next(iter(graph.runs.values()))
    assert start.config["start"] == {"hub": "org/small", "revision": commit}
    assert start.compute == {"start": "org/small"}
    assert start.labels["model"] == "small"
