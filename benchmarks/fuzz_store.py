"""Whatever happens to a store's files, no wrong number is published, and only what is broken is lost.

    python -m benchmarks.fuzz_store [--mutations N] [--seed S] [--json FILE]

A tiny sweep trains a store. Each mutation (`benchmarks.store_mutations`) changes one file of a copy. Then every command
that reads a store runs on it, the tables are read, and where a model or a cache was changed an evaluation that uses it
is computed again. Counted as wrong: a number that differs from the whole store's, a number of another stage run that
is missing, a traceback, an exit code other than 0, 1 and 2, and a changed file that `verify` does not name. Root may
read everything, so as root the mutations are made and read by the user nobody.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import numbers
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd

from benchmarks.faults import TINY
from benchmarks.permissions import bind_root
from benchmarks.store_mutations import mutate
from pipelines.configuration import STAGES
from pipelines.errors import StageFailure, UserError

SWEEP = [*TINY, "objective=ce", "tracking=off", "pretrain.tokens=8192", "midtrain.tokens=4096", "grpo.steps=2"]
COMMANDS = (["verify", "--json"], ["status", "--all"], ["measure", "--json"])
RARE_COMMANDS = (["gc"], ["status", "--json"])
"""Run after one mutation in `RARE`; `gc` composes all named sweeps."""
RARE = 25
START_OF_RL = {("stage", "grpo"), ("step", "0.0")}
"""The mid-trained model's rows that count as RL's too, which only the RL stage run tells."""
EVALUATIONS = ("cache", "checkpoints")
"""Parts of a path whose mutation makes an evaluation be computed again."""


@dataclass
class Report:
    """What the mutations led to."""

    mutations: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0


Rows = Counter[tuple[str, frozenset[tuple[str, str]]]]
"""The rows of a study's tables: the stage run of each, and its values that are not empty, by column."""


@dataclass(frozen=True)
class Whole:
    """The numbers of the store before anything is mutated."""

    store: Path
    rows: Rows


def read(store: Path) -> Rows:
    """Every measurement and every row of a ledger; numbers are compared exactly, whatever type a column has."""
    import analysis

    rows: Rows = Counter()
    for table in (analysis.load(store), analysis.ledger(store)):
        for row in table.to_dict("records"):
            values = {(str(name), _text(value)) for name, value in row.items() if not pd.isna(value)}
            rows[row["stage_run"], frozenset(values)] += 1
    return rows


def _text(value: Any) -> str:
    return repr(float(value)) if isinstance(value, numbers.Real) else str(value)


def called(store: Path, words: list[str]) -> tuple[int, str, str]:
    """Exit code, output and errors of `shaping-sweeps`, run in this process."""
    from sweeps.commands.shaping_sweeps import main

    output, errors, code = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
        patch.object(sys, "argv", ["shaping-sweeps", *words, "--store", str(store)]),
    ):
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    return code, output.getvalue(), errors.getvalue()


def examine(whole: Whole, store: Path, path: Path, *, rare: bool) -> list[str]:
    """What is wrong with what commands say and read after `path` was mutated."""
    wrong = []
    for words in (*COMMANDS, *(RARE_COMMANDS if rare else ())):
        code, output, errors = called(store, words)
        if code not in (0, 1, 2) or "Traceback" in errors + output:
            wrong.append(f"{' '.join(words)} ends with {code}: {errors[-300:]}")
        if words[0] == "verify" and code == 0 and is_harmed(whole, store, path):
            wrong.append("verify has no fault to report")
    affected = path.relative_to(store).parts
    try:
        rows = read(store)
    except (UserError, StageFailure) as error:
        # A store that cannot be opened at all is refused by name.
        return [*wrong, *([] if str(store) in str(error) else [f"the tables are refused with: {error}"])]
    if added := rows - whole.rows:
        wrong.append(f"{sum(added.values())} rows have other numbers, such as {next(iter(added))}")
    # A closed folder of a stage closes all its stage runs.
    is_open = os.access(store / affected[0], os.R_OK | os.X_OK)
    gone = {stage_run for stage_run, values in whole.rows - rows if not values >= START_OF_RL}
    if is_open and (others := gone - set(affected)):
        wrong.append(f"rows of {others} are missing")
    return wrong


def is_harmed(whole: Whole, store: Path, path: Path) -> bool:
    """Whether a file of a stage run, which `verify` checks, cannot be read or is another. A state is not needed."""
    name = path.relative_to(store)
    if name.parts[0] not in STAGES or (name.name == "state.json" and not os.path.lexists(path)):
        return False
    try:
        return path.read_bytes() != (whole.store / name).read_bytes() if path.is_file() else True
    except OSError:
        return True


def evaluated_again(whole: Whole, store: Path, path: Path) -> list[str]:
    """Compute an evaluation again that may use `path`; returns what is wrong with it."""
    from pipelines.configuration.tracking import TrackingConfig
    from pipelines.files import read_sealed
    from sweeps.execute.worker import Task, perform

    parts = path.relative_to(store).parts
    for original in sorted(whole.store.glob("evaluate/*")):
        spec = read_sealed(original / "spec.json")
        if parts[0] != "cache" and spec["parent"]["signature"] not in parts:
            continue
        expected = read_sealed(original / "result.json")["measurements"]
        try:
            shutil.rmtree(store / "evaluate" / original.name)
            perform(store, spec, TrackingConfig(mode="off"), task=Task(job="fuzz", log=store / "log"))
            actual = read_sealed(store / "evaluate" / original.name / "result.json")["measurements"]
        except (UserError, StageFailure) as error:
            # The parent itself may be what cannot be read.
            return [] if str(store) in str(error) else [f"the evaluation is refused with: {error}"]
        except OSError as error:
            return [] if error.filename and not os.access(store / "evaluate", os.W_OK) else [f"evaluating: {error}"]
        # In any order; as text, since NaN is not equal to itself.
        if sorted(map(json.dumps, actual)) != sorted(map(json.dumps, expected)):
            return [f"the evaluation {original.name} has other numbers"]
        return []
    return []


def mutated(whole: Whole, folder: Path, seed: int) -> tuple[str, str, list[str]]:
    """Mutate a copy in `folder` and examine it; returns the mutation, its file, and what is wrong."""
    dice = random.Random(seed)
    store = Path(shutil.copytree(whole.store, folder / "store", ignore=shutil.ignore_patterns("jobs", "wandb")))
    if dice.random() < 0.5:
        (store / "cache" / "readings.arrow").unlink()
    path, mutation = mutate(store, dice)
    try:
        wrong = examine(whole, store, path, rare=seed % RARE == 0)
        if set(path.parts) & set(EVALUATIONS):
            wrong += evaluated_again(whole, store, path)
    except Exception:
        wrong = [traceback.format_exc()]
    return mutation, str(path.relative_to(store)), wrong


def work(whole: Whole, seeds: range, folder: Path) -> Report:
    """Make the mutations with these seeds in `folder`."""
    bind_root()
    report, started = Report(), time.time()
    for seed in seeds:
        mutation, name, wrong = mutated(whole, folder, seed)
        report.mutations[mutation] += 1
        report.outcomes["wrong" if wrong else "right"] += 1
        report.wrong += [f"seed {seed}, {mutation} of {name}: {sentence}" for sentence in wrong]
        reopen(folder / "store")
        shutil.rmtree(folder / "store")
    report.seconds = time.time() - started
    return report


def reopen(store: Path) -> None:
    """Give back the rights that mutations took, so that the copy can be removed."""
    for folder in (store.parent, store):
        folder.chmod(0o700)
    for parent, folders, _ in os.walk(store):
        for name in folders:
            if not Path(parent, name).is_symlink():
                Path(parent, name).chmod(0o700)


def fuzz(store: Path, seeds: range) -> Report:
    """Mutate copies of the finished store at `store`, once for each seed."""
    with contextlib.redirect_stderr(io.StringIO()):
        whole = Whole(store, read(store))
    # A process of its own gives up root's rights.
    with (
        tempfile.TemporaryDirectory(prefix="fuzz-") as folder,
        multiprocessing.get_context("fork").Pool(1) as pool,
    ):
        return pool.apply(work, (whole, seeds, Path(folder)))


def main() -> None:
    """Parse the command line, train the store, mutate it, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzzed-") as folder:
        command = [sys.executable, "-m", "sweeps.commands.run", *SWEEP]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        report = fuzz(Path(folder) / "store", range(options.seed, options.seed + options.mutations))
    content: dict[str, Any] = {
        "mutations": dict(sorted(report.mutations.items())),
        "outcomes": dict(report.outcomes),
        "wrong": report.wrong,
        "seconds": round(report.seconds, 1),
    }
    if options.json:
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    for sentence in report.wrong:
        print(sentence)
    print(f"{sum(report.mutations.values())} mutations in {report.seconds:.0f} s: {dict(report.outcomes)}")
    sys.exit(int(bool(report.wrong)))


if __name__ == "__main__":
    main()
