"""Chains that begin at a start checkpoint, run stage by stage outside a worker."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipelines.configuration.data import DataConfig
from pipelines.configuration.tracking import TrackingConfig
from pipelines.data.corpus import Corpus, prepare
from pipelines.data.tokenizer import StartTokenizer
from pipelines.errors import StageFailure, UserError
from pipelines.files import sha256
from pipelines.stages import run_stage
from sweeps.compose.cells import compose_cell
from sweeps.plan.graph import StageRun
from sweeps.plan.planner import plan
from tests.conftest import SMALL
from tests.small_starts import CONFIGS, save_start, small_model

OFF = TrackingConfig("off")
KEYS = ["model.", "data.vocab_size", "pretrain.", "midtrain."]
RL = [word for word in SMALL if not word.startswith(tuple(KEYS))]
"""The tiny study's overrides that have an effect in RL from a start checkpoint."""


def chain(overrides: list[str]) -> dict[str, StageRun]:
    """Stage (`evaluate` followed by the measured one) -> its stage run."""
    runs: dict[str, StageRun] = {}
    for run in plan([compose_cell(overrides)]).runs.values():
        measured = f" {run.parent[0]}" if run.stage == "evaluate" and run.parent else ""
        runs[run.stage + measured] = run
    return runs


def run(stage_run: StageRun, root: Path, parent: str | None = None) -> dict[str, Any]:
    """Run a stage run in the folder of its stage; returns its outcome."""
    folder = root / stage_run.stage
    folder.mkdir(parents=True)
    return run_stage(stage_run.spec, folder=folder, root=root, tracking=OFF, parent=parent and root / parent)  # type: ignore[arg-type]


def ledger(folder: Path) -> list[dict[str, Any]]:
    """The rows of a ledger without times and speeds."""
    rows = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "time" and "second" not in k} for row in rows]


@pytest.mark.slow
def test_rl_from_a_start_checkpoint_equals_rl_from_the_same_weights_trained_here(tmp_path: Path) -> None:
    trained, started = tmp_path / "trained", tmp_path / "started"
    runs = chain(SMALL)
    run(runs["pretrain"], trained)
    run(runs["midtrain"], trained, "pretrain")
    run(runs["grpo"], trained, "midtrain")
    checkpoint = trained / "midtrain" / "checkpoints" / str(runs["grpo"].checkpoint)

    runs = chain([*RL, f"start.checkpoint={checkpoint}"])
    assert set(runs) == {"start", "grpo", "evaluate start", "evaluate grpo"}
    run(runs["start"], started)
    run(runs["grpo"], started, "start")
    assert ledger(started / "grpo") == ledger(trained / "grpo")
    step = f"checkpoints/step-{runs['grpo'].steps:06d}"
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert sha256(started / "grpo" / step / name) == sha256(trained / "grpo" / step / name), name


@pytest.mark.ci_only
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_start_is_imported_trained_measured_and_exported(name: str, tmp_path: Path, corpus: Corpus) -> None:
    folder = save_start(name, tmp_path / "model", corpus.tokenizer)
    runs = chain([*RL, f"start.checkpoint={folder}", "grpo.held_out_every=0"])
    root = tmp_path / "store"
    run(runs["start"], root)
    copy = root / "start" / "checkpoints" / "step-000000"
    names = {path.name for path in copy.iterdir()}
    assert names == {path.name for path in folder.iterdir()}
    assert all(sha256(copy / file) == sha256(folder / file) for file in names)

    metrics = run(runs["evaluate start"], root, "start")["metrics"]
    rows = torch.from_numpy(
        prepare(compose_cell([*RL, f"start.checkpoint={folder}"]).data, root / "cache", StartTokenizer(folder))
        .rows("text", "test", 64)[:8].astype("int64")
    )  # fmt: skip
    assert metrics["Docstrings/perplexity"] > 1

    run(runs["grpo"], root, "start")
    exported = root / "grpo" / "checkpoints" / "step-000002"
    model = AutoModelForCausalLM.from_pretrained(exported)
    assert type(model) is type(small_model(name))
    # Saved and loaded again, it is the same model, and its tokenizer that of the start.
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    with torch.no_grad():
        assert torch.equal(model(rows[:, :-1]).logits, again(rows[:, :-1]).logits)
    assert sha256(exported / "tokenizer.json") == sha256(folder / "tokenizer.json")
    assert AutoTokenizer.from_pretrained(exported).encode("Q: 1+2") == corpus.tokenizer.encode("Q: 1+2")


@pytest.mark.ci_only
@pytest.mark.parametrize("stage", ["pretrain", "midtrain"])
def test_pre_training_continues_from_a_start(stage: str, tmp_path: Path, corpus: Corpus) -> None:
    folder = save_start("llama", tmp_path / "model", corpus.tokenizer)
    kept = [word for word in SMALL if not word.startswith(("model.", "data.vocab_size", "grpo."))]
    kept = [word for word in kept if stage == "pretrain" or not word.startswith("pretrain.")]
    runs = chain([*kept, f"start.checkpoint={folder}", f"start.stage={stage}", f"until={stage}", "objective.beta=0.2"])
    root = tmp_path / "store"
    run(runs["start"], root)
    run(runs[stage], root, "start")
    # The first row measures the start itself, by transformers' own loss on the same rows.
    rows = ledger(root / stage)
    before, after = (
        AutoModelForCausalLM.from_pretrained(path)
        for path in (folder, root / stage / "checkpoints" / f"step-{runs[stage].steps:06d}")
    )
    assert rows[0]["cross_entropy"] > rows[-1]["cross_entropy"]
    assert before.config.max_position_embeddings == after.config.max_position_embeddings == 256
    assert before.config.rope_parameters == after.config.rope_parameters
    assert not torch.equal(before.lm_head.weight, after.lm_head.weight)


def save_own_code(folder: Path, corpus: Corpus) -> Path:
    """A checkpoint whose architecture is in Python files next to it."""
    save_start("llama", folder, corpus.tokenizer)
    (folder / "modeling_own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n\n\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own_llama'\n\n\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own_llama", "architectures": ["OwnForCausalLM"]}
    config["auto_map"] = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_code_of_a_checkpoint_runs_only_where_a_key_allows_it_and_is_signed(tmp_path: Path, corpus: Corpus) -> None:
    folder = save_own_code(tmp_path / "model", corpus)
    words = [*RL, f"start.checkpoint={folder}"]
    with pytest.raises(UserError, match=r"its model is code of its own \(modeling_own.py\), .*start.remote_code=true"):
        chain(words)
    words.append("start.remote_code=true")
    before = chain(words)["start"]
    assert before.config["start"]["code"] is True
    (folder / "modeling_own.py").write_text((folder / "modeling_own.py").read_text() + "# changed\n")
    assert chain(words)["start"].signature != before.signature
    (folder / "modeling_own.py").rename(folder / "other.py")
    with pytest.raises(UserError, match=r"there is no modeling_own.py next to it"):
        chain(words)


@pytest.mark.ci_only
def test_a_model_of_its_own_code_is_trained_and_exported_with_it(tmp_path: Path, corpus: Corpus) -> None:
    folder = save_own_code(tmp_path / "model", corpus)
    runs = chain([*RL, f"start.checkpoint={folder}", "start.remote_code=true"])
    root = tmp_path / "store"
    run(runs["start"], root)
    run(runs["grpo"], root, "start")
    exported = root / "grpo" / "checkpoints" / "step-000002"
    assert (exported / "modeling_own.py").read_text() == (folder / "modeling_own.py").read_text()
    model = AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True)
    assert type(model).__name__ == "OwnForCausalLM"
    # Its own architecture is a Llama's, so RL from a Llama is the same.
    llama = save_start("llama", tmp_path / "llama", corpus.tokenizer)
    runs = chain([*RL, f"start.checkpoint={llama}"])
    run(runs["start"], tmp_path / "other")
    run(runs["grpo"], tmp_path / "other", "start")
    other = tmp_path / "other" / "grpo" / "checkpoints" / "step-000002"
    assert sha256(other / "model.safetensors") == sha256(exported / "model.safetensors")


def test_a_start_that_changed_after_the_plan_is_refused(tmp_path: Path, corpus: Corpus) -> None:
    folder = save_start("llama", tmp_path / "model", corpus.tokenizer)
    runs = chain([*RL, f"start.checkpoint={folder}"])
    save_start("qwen2", folder, corpus.tokenizer)
    with pytest.raises(StageFailure, match="have changed since this stage run was planned"):
        run(runs["start"], tmp_path / "store")


def test_documents_and_prompts_are_those_of_the_starts_tokenizer(tmp_path: Path, corpus: Corpus) -> None:
    """A tokenizer with a beginning of text and another end, and a chat template."""
    from transformers import PreTrainedTokenizerFast

    backend = type(corpus.tokenizer.backend_tokenizer).from_str(corpus.tokenizer.backend_tokenizer.to_str())
    backend.add_special_tokens(["<s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<|endoftext|>")
    tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    folder = tmp_path / "model"
    tokenizer.save_pretrained(folder)
    data = DataConfig("t", ["networkx"], ["chain3"], 300, 0.5, 0.5, 300, 8)
    built = prepare(data, tmp_path / "cache", StartTokenizer(folder, chat=True))
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    rows, _ = built.rows_with_documents("chain3", "train", 64)
    assert built.document_start == begin
    assert all(row[0] == begin for row in rows)
    text = built.documents("train")[0]
    assert built.document_tokens("train")[0].tolist() == [
        begin, *tokenizer.encode(text.training_text, add_special_tokens=False), end
    ]  # fmt: skip
    (prompt,) = built.prompts(["1+1?"])
    assert prompt == tokenizer.encode("<s>user: 1+1?\nassistant:", add_special_tokens=False)
    plain = prepare(data, tmp_path / "cache", StartTokenizer(folder))
    assert plain.folder == built.folder
    assert plain.prompts(["1+1?"]) == [tokenizer.encode("1+1?")]
