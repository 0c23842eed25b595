"""`reproduce-paper-tables`: its files read back, its selections, its errors."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pandas as pd
import pytest
from rich.console import Console

from analysis.figures import figure_files
from analysis.headline import headline
from analysis.provenance import Provenance
from analysis.reproduce import Options, _decide, main, overlap_fact, parse, reproduce, select, show_claims, show_missing
from analysis.study import read_study
from analysis.table_builder import TABLE_NAMES, build_tables
from analysis.table_files import file_name, html_table, latex, markdown
from analysis.tables import NOT_MEASURED, NOT_RUN, Entry, Table
from pipelines.errors import StageFailure, UserError
from pipelines.files import write_sealed
from sweeps.store.stage_runs import Store
from tests.analysis.conftest import Measured, composed_once, known, planned, write_run
from tests.analysis.test_learning import FOUR, with_curves
from tests.conftest import SMALL

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a whole nano study, for tests that only read them."""
    root = tmp_path_factory.mktemp("finished")
    graph, store = planned(("+sweep=nano",)), Store.create(root / "store")
    for run in graph.runs.values():
        write_run(store, run)
    with pytest.MonkeyPatch.context() as patch:
        composed_once(patch)
        return reproduce(options_of(root), Console(quiet=True))


def options_of(tmp_path: Path, **changes: Any) -> Options:
    return Options(
        **{"store": str(tmp_path / "store"), "results": str(tmp_path / "results"), "sweep": "nano", **changes}
    )


def test_every_format_has_the_numbers(finished: Path) -> None:
    folder = finished
    exact = 100 * known(Measured("ce", 1, "grpo", 10, "Chain-5", "avg@8"))
    for frame in (
        pd.read_csv(folder / "tables/table-14-nano.csv"),
        pd.read_parquet(folder / "tables/table-14-nano.parquet"),
    ):
        row = frame[frame["RL step"] == 10].iloc[0]
        assert row["Chain-5 Avg@8"] == pytest.approx(exact)
        assert 0 <= row["Chain-5 Avg@8 low"] < exact < row["Chain-5 Avg@8 high"] <= 100
        assert row["Chain-5 Avg@8 n"] == 1
    for ending in ("md", "tex", "html"):
        text = (folder / f"tables/table-14-nano.{ending}").read_text()
        assert f"{exact:.2f}" in text
        assert "One seed" in text
    tidy = pd.read_csv(folder / "measurements.csv", keep_default_na=False).astype({"step": str})
    (value,) = tidy.query(
        "objective == 'ce' and stage == 'grpo' and step == '10' and benchmark == 'Chain-5' and metric == 'avg@8'"
    )["value"]
    assert float(value) == pytest.approx(exact / 100)
    runs = pd.read_csv(folder / "rl_runs.csv", keep_default_na=False)
    assert runs["objective"].tolist() == ["ce", "precision", "diversity", "tail_penalty", "head_reward"]
    for name in ("pretraining-nano", "rl-nano", "rl-scores-nano", "maps-nano"):
        assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (folder / "figures" / f"{name}.svg").read_text()
    claims = json.loads((folder / "claims.json").read_text())
    assert {claim["verdict"] for claim in claims["study"]} == {"undecided"}
    assert len(claims["paper"]) == 6


def test_the_same_store_gives_the_same_bytes(make_store: Callable, tmp_path: Path) -> None:
    def digest(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    make_store(["objective=ce,precision"])
    first = digest(reproduce(options_of(tmp_path, sweep=None), Console(quiet=True)))
    (tmp_path / "store" / "cache" / "readings.arrow").unlink()
    second = digest(reproduce(options_of(tmp_path, sweep=None), Console(quiet=True)))
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_latex_is_balanced_and_escaped(finished: Path) -> None:
    for path in (finished / "tables").glob("*.tex"):
        text = path.read_text()
        assert text.count("{") == text.count("}")
        assert not re.search(r"(?<!\\)[%_]", re.sub(r"\\label\{.*\}|\{!\}\{%", "", text)), path
        assert not set("βλ±–") & set(text), path
        widths = {line.count("&") for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line}
        assert len(widths) == 1, path


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here: install texlive-latex-recommended")
def test_latex_compiles(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished / "tables", tmp_path / "tables"))
    names = "\n".join(rf"\input{{{path.name}}}" for path in sorted(folder.glob("*.tex")))
    (folder / "all.tex").write_text(
        rf"\documentclass{{article}}\usepackage{{booktabs,graphicx}}\begin{{document}}{names}\end{{document}}"
    )
    done = subprocess.run(
        ["pdflatex", "-halt-on-error", "all.tex"], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert (folder / "all.pdf").stat().st_size > 10_000


def test_hostile_names_stay_text_in_every_format() -> None:
    name = "<img src=x onerror=alert(1)>|$\\input{/etc/passwd}_%&#~^"
    frame = pd.DataFrame([[Entry(1.0, n=1, stage_runs=("a",))]], columns=pd.MultiIndex.from_tuples([(name, name)]))
    frame.index = pd.MultiIndex.from_tuples([(name, 1)], names=["objective", "step"])
    table = Table("../" + name, None, name, name, frame, "m", "grpo", (name,))
    assert "<img" not in html_table(table)
    assert "\\input{" not in latex(table)
    assert r"\|" in markdown(table)
    assert file_name(table).count("/") == 0


def test_half_a_surrogate_pair_in_a_record_does_not_stop_the_page(make_store: Callable, tmp_path: Path) -> None:
    _, store = make_store(["objective=ce"])
    for run in list(store.runs()):
        environment = {"shaping": "0.1.0", "platform": "Linux \ud800", "commit": "\udfff"}
        write_sealed(run.folder / "spec.json", {**run.spec, "environment": environment})
        write_sealed(run.folder / "state.json", {"status": "done", "attempts": [{"host": "\udc80", "started": 1.0}]})
    page = (reproduce(options_of(tmp_path, sweep=None), Console(quiet=True)) / "report.html").read_text()
    assert "Linux ?" in page or "Linux \\ud800" in page or "Linux \ufffd" in page


def test_a_selection_leaves_the_whole_results_alone(make_store: Callable, tmp_path: Path) -> None:
    make_store(["+sweep=nano"])
    whole = tmp_path / "results" / "nano"
    whole.mkdir(parents=True)
    (whole / "report.html").write_text("the whole")
    chosen = options_of(tmp_path, tables=[3, 16], models=["nano"], format="latex")
    folder = select(chosen, Console(quiet=True))
    assert sorted(p.name for p in folder.iterdir()) == ["table-03-nano.tex", "table-16-nano.tex"]
    assert (whole / "report.html").read_text() == "the whole"
    command = f"shaping-run -m +sweep=nano model=nano store={tmp_path / 'store'}"
    assert command not in (folder / "table-03-nano.tex").read_text()
    shutil.rmtree(tmp_path / "store" / "evaluate")
    select(chosen, Console(quiet=True))
    assert (folder / "table-03-nano.tex").read_text().endswith(f"\n% Missing numbers are computed by: {command}\n")
    select(options_of(tmp_path, tables=[3], models=["nano"], format="markdown"), Console(quiet=True))
    assert (folder / "table-03-nano.md").read_text().endswith(f"\nThis command computes them: `{command}`\n")


def test_a_selection_with_every_table_is_replaced_by_the_next(make_store: Callable, tmp_path: Path) -> None:
    make_store(["+sweep=nano"])
    folder = select(options_of(tmp_path, models=["nano"]), Console(quiet=True))
    assert (folder / "theory-nano.csv").is_file()
    select(options_of(tmp_path, models=["nano"], format="csv"), Console(quiet=True))
    assert {path.suffix for path in folder.iterdir()} == {".csv"}


def test_every_table_has_a_name_that_is_known(make_store: Callable) -> None:
    study = with_curves(*make_store([*FOUR, "grpo.seed=1,2"]))
    names = {table.name.partition("-")[0] for table in build_tables(study)}
    assert {"table", "learning", "variance", "theory"} <= names <= set(TABLE_NAMES)


def test_missing_is_one_command(make_store: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_store(["+sweep=nano", "seed=1,2"], leave_out=lambda run: run.checkpoint == "step-000020")
    show_missing(options_of(tmp_path), Console(soft_wrap=True))
    printed = capsys.readouterr().out
    assert "10 stage runs are missing" in printed
    assert f"shaping-run -m +sweep=nano seed=1,2 store={tmp_path / 'store'}" in printed
    assert "Table 14: RL from ce, nano: 12 cells wait for 2 stage runs" in printed


def test_claims_are_printed_with_an_exit_code(
    make_store: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_store(["+sweep=nano"])
    assert show_claims(options_of(tmp_path), Console(soft_wrap=True)) == 4
    printed = capsys.readouterr().out
    assert "UNDECIDED  The tail penalty beats the baseline after RL.  (the paper's numbers: supported)" in printed


def test_without_a_sweep_it_reads_everything_in_the_store(make_store: Callable, tmp_path: Path) -> None:
    make_store(["objective=ce,head_reward", "seed=3"])
    folder = reproduce(options_of(tmp_path, sweep=None), Console(quiet=True))
    assert {p.stem for p in (folder / "tables").glob("*.md")} >= {"table-14-nano", "table-21-nano"}


@pytest.mark.slow
def test_a_trained_study_has_no_gaps(study: Path, shaping_run: Command) -> None:
    """The command on a store that was really trained: tables of its two settings, without a missing number."""
    overrides = ",".join(f'"{o}"' for o in [*SMALL, "objective=ce,precision"])
    finished = shaping_run("scale=nano", f"overrides=[{overrides}]", cwd=study, module="analysis.reproduce")
    assert finished.returncode == 0, finished.stderr
    tables = study / "results" / "nano" / "tables"
    assert {p.stem for p in tables.glob("table-1[4-9]*.md")} == {"table-14-nano", "table-16-nano"}
    for path in tables.glob("table-[01][0-9]-nano.md"):
        assert not any(gap in path.read_text() for gap in ("–", NOT_RUN, NOT_MEASURED))
    assert "missing" not in finished.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scael=nano"], "scael: unknown key; did you mean 'scale'"),
        (["nano"], "nano: it is not of the form key=value"),
        (["seeds=[x]"], "seeds"),
        (["tables=[24]"], "tables=24: the paper's tables are 1 to 23"),
        (["format=pdf"], "format=pdf: it is one of: csv"),
        (["--mising"], "--mising: unknown flag; did you mean '--missing'"),
        (["--scale=nano"], "--scale=nano: unknown flag; did you mean 'scale'"),
        (["scale=.."], "scale=..: it names a folder"),
        (["scale=."], "scale=.: it names a folder"),
        (["scale=''"], "scale=: it names a folder"),
        (["scale=a/b"], "scale=a/b: it names a folder"),
    ],
)
def test_mistyped_options_are_named(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(arguments)


def test_a_missing_store_is_named(tmp_path: Path, shaping_run: Command) -> None:
    finished = shaping_run("store=nowhere", cwd=tmp_path, module="analysis.reproduce")
    assert finished.returncode == 2
    assert "store=nowhere: the folder does not exist; run a sweep first" in finished.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_corrupt_spec_is_named_and_its_stage_run_missing(
    make_store: Callable, tmp_path: Path, warnings: list[str]
) -> None:
    _, store = make_store(["objective=ce"])
    path = next(store.root.glob("grpo/*/spec.json"))
    path.write_text("{")
    options = Options(store=str(store.root), sweep="nano", results=str(tmp_path / "results"))
    folder = reproduce(options, Console(quiet=True))
    assert f"{path}: it is not readable JSON" in "\n".join(warnings)
    assert (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("files", "command", "named"),
    [
        (["README.md"], reproduce, "README.md"),
        (["claims.json", "report.html", "README.md"], reproduce, "README.md"),
        (["tables/custom.tex"], reproduce, "tables"),
        (["claims.json", "selection/notes.csv"], reproduce, "notes.csv"),
        (["selection/notes.csv"], select, "notes.csv"),
    ],
)
def test_files_of_others_are_not_replaced(
    tmp_path: Path, files: list[str], command: Callable[[Options, Console], Path], named: str
) -> None:
    for name in files:
        path = tmp_path / "results" / "nano" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with pytest.raises(UserError, match=rf"{named} in it is not from this command; .* results=FOLDER"):
        command(options_of(tmp_path), Console(quiet=True))
    assert all((tmp_path / "results" / "nano" / name).exists() for name in files)


def test_a_corrupt_manifest_is_no_fact(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    for name, overlap in (("a", 1), ("b", 2)):
        (store.cache / name).mkdir(parents=True)
        write_sealed(store.cache / name / "manifest.json", {"overlap": overlap})
    assert overlap_fact(store) == {"questions in more than one split": "3"}
    (store.cache / "a" / "manifest.json").write_text('{"overlap": 0}')
    assert overlap_fact(store) == {"questions in more than one split": "2"}


def test_ctrl_c_prints_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["reproduce-paper-tables"])
    monkeypatch.setattr("analysis.reproduce.reproduce", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 130
    assert capsys.readouterr().err == ""


def test_results_are_replaced_as_a_whole(make_store: Callable, tmp_path: Path) -> None:
    make_store(["objective=ce"])
    select(options_of(tmp_path, sweep=None, tables=[3]), Console(quiet=True))
    folder = reproduce(options_of(tmp_path, sweep=None), Console(quiet=True))
    (folder / "tables" / "old.csv").write_text("from an earlier run")
    reproduce(options_of(tmp_path, sweep=None), Console(quiet=True))
    assert not (folder / "tables" / "old.csv").exists()
    assert [p.name for p in folder.parent.iterdir()] == ["nano"]


def test_nothing_is_left_half_written_if_drawing_fails(
    make_store: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(["objective=ce"])
    (tmp_path / "dies.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(figure_files.vega_lite, "__file__", str(tmp_path / "dies.py"))
    with pytest.raises(StageFailure, match="the process that draws figures ended with status 3"):
        reproduce(
            Options(store=str(tmp_path / "store"), results=str(tmp_path / "results"), sweep="nano"), Console(quiet=True)
        )
    assert not list(tmp_path.glob("results/*"))


def test_an_unwritable_folder_is_named(make_store: Callable, tmp_path: Path) -> None:
    make_store(["objective=ce"])
    with pytest.raises(UserError, match="results=/proc: it cannot be written"):
        reproduce(Options(store=str(tmp_path / "store"), results="/proc", sweep="nano"), Console(quiet=True))


@pytest.mark.parametrize("code", [0, 3, 4])
def test_the_command_ends_with_the_code_of_its_claims(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr("analysis.reproduce.show_claims", lambda options, console: code)
    monkeypatch.setattr("analysis.reproduce.set_up", lambda arguments: None)
    monkeypatch.setattr(sys, "argv", ["reproduce-paper-tables", "--claims"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == code


@pytest.mark.parametrize(
    ("seeds", "seconds", "expected"),
    [
        ([1], None, ("One seed decides nothing; 5 seeds:", "shaping-run -m +sweep=nano seed=1,2,3,4,5")),
        ([1], 600.0, ("One seed decides nothing; 5 seeds, about 40 minutes more:", None)),
        ([1, 2], 600.0, ("; 5 seeds, about 30 minutes more, are a start:", None)),
    ],
)
def test_what_would_decide_has_the_time_of_the_seeds_that_are_missing(
    make_store: Callable, seeds: list[int], seconds: float | None, expected: tuple[str, str | None]
) -> None:
    """Two seeds whose results are equal have no forecast."""
    words = ["objective=ce,precision", f"seed={','.join(map(str, seeds))}"]
    study = read_study(*make_store(words, number=lambda measured: 0.5))
    decided = _decide(Options(sweep="nano"), headline(study), Provenance({}, seconds))
    assert decided is not None
    assert decided["words"].endswith(expected[0])
    assert expected[1] in (None, decided["command"])
