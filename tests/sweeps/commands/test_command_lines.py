"""What is typed: random command lines, a folder of one's own for every command, and what --cfg job shows."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.fuzz_command_line import fuzz
from sweeps.compose.cells import compose_data
from sweeps.store.stage_runs import Store

pytestmark = pytest.mark.slow

Command = Callable[..., subprocess.CompletedProcess[str]]
SWEEPS, DATA, TABLES = "sweeps.commands.shaping_sweeps", "sweeps.commands.data", "analysis.reproduce"


def test_random_command_lines_end_with_a_sentence() -> None:
    assert [(outcome.line, outcome.faults, outcome.errors) for outcome in fuzz(30, 0) if outcome.faults] == []


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The folder `own` with a sweep, a model and a corpus, in the working directory of the commands."""
    files = {
        "own/sweep/mine.yaml": "name: mine\ngrid: {model: [wide], seed: [5, 6]}\n",
        "own/model/wide.yaml": "defaults: [nano]\nname: wide\nd_model: 128\n",
        "own/data/mine.yaml": "defaults: [nano]\nname: mine\nsources: {mine: {kind: jsonl, path: nothing.jsonl}}\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


def test_every_command_searches_a_folder_of_ones_own(own: Path, shaping_run: Command) -> None:
    planned = shaping_run("plan", "+sweep=mine", "--json", "--config-dir", "own", cwd=own, module=SWEEPS)
    assert planned.returncode == 0, planned.stderr
    assert list(json.loads(planned.stdout)["cells"]) == ["wide/ce/seed5", "wide/ce/seed6"]
    before = shaping_run("--config-dir=own", "plan", "+sweep=mine", "--json", cwd=own, module=SWEEPS)
    assert before.stdout == planned.stdout
    sizes = shaping_run("sizes", "wide", "--config-dir=own", cwd=own, module=SWEEPS)
    assert sizes.stdout.splitlines()[1].startswith("wide")
    shown = shaping_run("--config-dir", "own", "--cfg=job", "+sweep=mine", "--package=model", cwd=own)
    assert shown.stdout.count("d_model: 128") == 2
    Store.create(own / "store")
    missing = shaping_run("scale=mine", "sweep=mine", "--missing", "--config-dir=own", cwd=own, module=TABLES)
    assert missing.returncode in (0, 2)
    assert "unknown option" not in missing.stderr
    prepared = shaping_run("prepare", "data=mine", "data.shards=x", "--config-dir=own", cwd=own, module=DATA)
    assert "data.sources.mine.path=nothing.jsonl: no file matches" in prepared.stderr
    for command, module in ((["plan"], SWEEPS), ([], "sweeps.commands.run"), (["prepare"], DATA), ([], TABLES)):
        refused = shaping_run(*command, "--config-dir=nowhere", cwd=own, module=module)
        assert refused.returncode == 2
        assert "--config-dir=nowhere: there is no such folder" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1


def test_cfg_job_shows_the_cells_that_run(tmp_path: Path, shaping_run: Command) -> None:
    typed = ["pretrain.mixture={text:0.9}", "pretrain.mixture={chain3:1}"]
    shown = shaping_run("--cfg=job", "--package=pretrain.mixture", *typed, cwd=tmp_path)
    assert shown.stdout.split() == ["#", "@package", "pretrain.mixture", "chain3:", "1.0"]
    swept = shaping_run("--cfg=job", "seed=1,2", "objective=ce,precision", "--package=seed", cwd=tmp_path)
    assert [line for line in swept.stdout.splitlines() if line.isdigit()] == ["1", "1", "2", "2"]
    assert "# cell: seed=2 objective=precision" in swept.stdout
    named = shaping_run("--cfg=job", "+sweep=nano", "--package=objective", cwd=tmp_path)
    assert [line for line in named.stdout.splitlines() if line.startswith("beta")] == [
        "beta: 0.0", "beta: -0.25", "beta: 0.5", "beta: 0.0", "beta: 0.0"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hydra.mode=RUN"], "hydra.mode=RUN: shaping-run always plans a sweep"),
        (["hydra.searchpath=[file:///x]"], "--config-dir=FOLDER or SHAPING_CONFIG_DIR"),
        (["--config-name=x"], "--config-name: a cell is always made from config.yaml"),
        (["--config-path=x"], "--config-path: put files of your own into a folder"),
        (["--package=data"], "--package: it is for a configuration that is shown"),
        (["--cfg=job", "--package=dta"], "--package=dta: a cell has no such part"),
        (["scale=two", "words"], "words: it is not of the form key=value; if it belongs to the value before it"),
        (["seed=" + "9" * 27], "it may be at most 9,223,372,036,854,775,807"),
        (["pretrain.tokens=1" + "0" * 21], "it may be at most 1,000,000,000,000,000"),
        (["model.layers=100000000"], "model.layers=100000000: it may be at most 10,000"),
        (["grpo.prompts=1000000000"], "grpo.prompts=1000000000: it may be at most 1,000,000"),
        (["evaluation.benchmarks.Order.items=1" + "0" * 12], "items=1000000000000: it may be at most 100,000,000"),
        (["evaluation.pass_k=[4,10000000]"], "evaluation.pass_k=10000000: it may be at most 1,000,000"),
        (["scale='a\udc80'"], "scale=a\\udc80: it has bytes that are no UTF-8"),
        (["+data.mixtures.c\ud800={text:1.0}"], "\\ud800"),
        (["data.tasks_per_family=1" + "0" * 15], "it may be at most 100,000,000"),
        (["pretrain.milestones=20000", "pretrain.batch_tokens=64"], "pretrain.milestones=20000"),
        (["data.text=[]"], "pretrain.mixture.text=0.36: data.text is empty"),
        (["data.text=[]", "pretrain.mixture={chain3:1}", "midtrain.mixture={chain3:1}"], "Docstrings.task=text: "),
        (["data.text=['']"], "no such package is installed"),
        (["data.tasks=[]"], "pretrain.mixture=chain3: it is one of: text"),
        (["evaluation.benchmarks={}"], "evaluation.benchmarks={}: name at least one benchmark"),
        (["evaluation.benchmarks.Order.stages=[]"], "it is never measured; delete it: ~evaluation.benchmarks.Order"),
        (["evaluation.pass_k=[]"], "evaluation.pass_k=[]: it lists each k"),
        (["evaluation.pass_k=[2,2]"], "evaluation.pass_k=[2, 2]: it lists each k"),
        (["evaluation.pass_k=[99]"], "evaluation.pass_k=99: no benchmark has so many samples per item, the most are 8"),
        (["scale="], "scale='': it is a name in tables"),
        (["store="], "store='': name the folder of stage runs"),
        (["objective=[ce,precision]"], "sweep over them: objective=ce,precision"),
        (["+sweep=[nano,micro]"], "sweep over them: +sweep=nano,micro"),
        (["+sweep=null"], "+sweep=null: an option of a group is a name"),
        (["hydra/launcher=null"], "hydra/launcher=null: an option of a group is a name"),
        (["hydra/launcher=basic"], "hydra/launcher=basic: it runs no graph of stage runs; choose local or slurm"),
        (["hydra/sweeper=basic"], "hydra/sweeper=basic: it runs no graph of stage runs; choose graph"),
        (["+sweep=69"], "needs quotes: +sweep='\"69\"'"),
        (["+sweep="], "sweep=: unknown option; it is one of: beta, beta_lambda_k, entropy, heads"),
        (["++sweep=nano"], "++sweep=nano: an option is added with one plus: +sweep=nano"),
        (["~sweep"], "~sweep: no option of this group is chosen"),
        (["+objective=ce"], "+objective: an option of this group is chosen already; leave out the +"),
        (["tracking=[csv,nope]"], "tracking=nope: unknown option; it is one of: csv"),
        (["seed=[range(1,3)]"], "a sweep cannot be inside a list or a mapping"),
        (["pretrain.mixture={text:choice(1,2)}"], "a sweep cannot be inside a list or a mapping"),
        (["hydra.launcher.workers=1,2"], "keys of Hydra and the launcher cannot be swept"),
        (["evaluation.bench/marks.Order.items=1"], "a key has letters, digits, _, - and dots"),
        (["--shell-completion"], "--shell-completion: add what to do: install=bash"),
        (["grpo.tasks=[missing.jsonl]"], "grpo.tasks=missing.jsonl: no such file"),
    ],
)  # fmt: skip
def test_a_mistake_exits_with_2_and_writes_nothing(
    arguments: list[str], message: str, tmp_path: Path, shaping_run: Command
) -> None:
    finished = shaping_run(*arguments, cwd=tmp_path)
    assert finished.returncode == 2
    assert message in finished.stderr
    assert len(finished.stderr.splitlines()) == 1
    assert finished.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (SWEEPS, ["plan", "seed=range(0)"], "seed=range(0): it has no values"),
        (SWEEPS, ["plan", "--why"], "Option '--why' requires an argument; --help lists what the command takes"),
        (SWEEPS, ["plan", "--nope"], "No such option: --nope"),
        (SWEEPS, ["status", "a\nb=c"], "'a\\nb=c': an argument is one line"),
        (SWEEPS, ["show"], "Missing argument 'signature'; --help lists what the command takes"),
        (SWEEPS, ["pln"], "No such command 'pln'. Did you mean 'plan'?"),
        (DATA, ["prepare", "seed=1,2"], "seed=1,2: it names several values, and this takes one"),
        (DATA, ["prepare", "data=papr"], "data=papr: unknown option; did you mean 'paper'?"),
        (DATA, ["prepare"], "data.shards=null: name the folder for the token shards"),
        (DATA, ["prepare", "data.sources={m:{kind:text,path:nope}}", "data.shards=x"], "no file matches"),
        (DATA, ["prepare", "data.sources={m:{kind:text}}", "data.shards=x"], "data.sources.m.path: it has no value"),
        (DATA, ["prepare", "--processes=x"], "Invalid value for '--processes'"),
        (TABLES, ["seeds=]"], "seeds=]: ']' is no value; text is written in quotes"),
        (TABLES, ["overrides={a:1}"], "overrides={a:1}: it must be a list: [a,b]"),
        (TABLES, ["tables=x"], "tables=x: it must be a list: [a,b]"),
        (TABLES, ["scael=nano"], "scael: unknown key; did you mean 'scale'?"),
        (TABLES, ["sweep=nanno"], "sweep=nanno: unknown option; did you mean 'nano'?"),
        (TABLES, ["--clams"], "--clams: unknown flag; did you mean '--claims'?"),
    ],
)
def test_a_mistake_in_another_command_is_a_sentence(
    module: str, arguments: list[str], message: str, tmp_path: Path, shaping_run: Command
) -> None:
    if module == TABLES:
        Store.create(tmp_path / "store")
    finished = shaping_run(*arguments, cwd=tmp_path, module=module)
    assert finished.returncode == 2
    assert message in finished.stderr
    assert len(finished.stderr.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"store"}


def test_a_command_without_a_subcommand_shows_its_help(tmp_path: Path, shaping_run: Command) -> None:
    for module, word in ((SWEEPS, "contamination"), (DATA, "prepare")):
        shown = shaping_run(cwd=tmp_path, module=module)
        assert (shown.returncode, shown.stderr) == (0, "")
        assert word in shown.stdout


def test_words_of_a_run_may_be_planned(tmp_path: Path, shaping_run: Command) -> None:
    planned = shaping_run("plan", "-m", "seed=1,2", "--json", cwd=tmp_path, module=SWEEPS)
    assert len(json.loads(planned.stdout)["cells"]) == 2


def test_a_slurm_that_does_not_answer_leaves_nothing_written(
    tmp_path: Path, shaping_run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("sbatch", "squeue", "scontrol", "sacct"):
        path = commands / name
        path.write_text("#!/bin/sh\necho 'error: Unable to contact slurm controller (connect failure)' >&2\nexit 1\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    (tmp_path / "work").mkdir()
    finished = shaping_run("hydra/launcher=slurm", cwd=tmp_path / "work")
    assert finished.returncode == 1
    assert (
        "Slurm does not answer (Unable to contact slurm controller (connect failure)); try again later"
        in finished.stderr
    )
    assert list((tmp_path / "work").iterdir()) == []


def test_the_data_of_the_paper_is_composed_by_itself() -> None:
    """Its sources are not those of the default mixtures, which `shaping-data prepare` does not need."""
    assert list(compose_data(["data=paper"]).sources) == ["web", "encyclopedia", "code", "mathematics", "reasoning"]
