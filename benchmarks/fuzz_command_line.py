"""Random command lines, from Hydra's grammar and near it: each ends with exit code 0, 1 or 2 and, if not 0, a sentence.

    python -m benchmarks.fuzz_command_line [--lines 500] [--seed 0] [--json FILE]

Commands run in this process. Stage runs, Slurm and the encoding of corpora are replaced, so a command ends where they
would start. A line fails if its exit code is another one, if it prints a traceback or the name of an exception, if an
error is not one line for each mistake, if a user's mistake leaves something written, or if it takes too long.
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import random
import re
import shlex
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from omegaconf import OmegaConf

from pipelines.errors import StageFailure
from sweeps.compose.cells import composed
from sweeps.compose.config_files import options_of
from sweeps.compose.named_sweeps import literal
from sweeps.plan.names import flatten
from sweeps.store.stage_runs import Store

COMMANDS = {
    "shaping-run": "sweeps.commands.run",
    "shaping-sweeps": "sweeps.commands.shaping_sweeps",
    "shaping-data": "sweeps.commands.data",
    "reproduce-paper-tables": "analysis.reproduce",
}
SECONDS = 30.0
"""Processor time of one command."""
EXCEPTION = re.compile(r"\b(?!UserError)[A-Z]\w*(Error|Exception|Warning)\b|Traceback")
GROUPS = ("model", "objective", "data", "pretrain", "midtrain", "grpo", "evaluation", "compute", "tracking")
WORDS = [
    *["ce", "nano", "paper", "x", "a#b", "a=b", "it's", "ü", "null", "true", "~/x", "${seed}", "${nope}", "???", "nan"],
    *["-inf", "1e999", "0", "-1", "7", "0.5", "1e-3", "10" * 13, "a b", "", "\udcff", "\n", "\x1b[31m", "a,b", "*"],
]
FLAGS = {
    "shaping-run": "--cfg=job --cfg=job --cfg=hydra --cfg -m --run --resolve --info --debug=1 --package=data --help",
    "shaping-sweeps": "--json --no-tree --why --why=nano/ce/seed1 --mfu=2 --device=core --sbatch --k=0 --help",
    "shaping-data": "--processes=x --processes=1 --validation=2 --decontaminate=good.jsonl --help",
    "reproduce-paper-tables": "--missing --missing --claims --help",
}
OTHER_FLAGS = ["--config-dir", "--config-dir=own", "--config-dir=own", "--config-dir=own", "--nope", "-x"]
SWEEPS_COMMANDS = [
    "plan",
    "status",
    "logs",
    "retry",
    "dismiss",
    "verify",
    "gc",
    "show",
    "sizes",
    "calibrate",
    "measure",
]
DATA_COMMANDS = ["prepare", "show", "verify", "shw"]
TABLES_KEYS = ["scale", "sweep", "seeds", "store", "results", "overrides", "tables", "models", "format", "claims"]
FILES: dict[str, str | bytes] = {
    "own/sweep/good.yaml": "name: good\ngrid: {seed: [1, 2], pretrain.mixture: [{text: 1.0}, {chain3: 1.0}]}\n",
    "own/sweep/strings.yaml": "name: strings\ngrid: {scale: ['a=b', 'c,d', \"it's\", 'null', '1e-3', 'ü', '[']}\n",
    "own/sweep/broken.yaml": "name: broken\ngrid: {seed: [1\n",
    "own/sweep/scalar.yaml": "name: scalar\ngrid: {seed: 3}\n",
    "own/sweep/list.yaml": "- seed: 1\n",
    "own/data/broken.yaml": "name: broken\nsources: {mine: 3}\n",
    "own/model/latin.yaml": b"name: \xfc\n",
    "good.jsonl": '{"question": "1+1?", "answer": 2}\n',
    "broken.jsonl": '{"question": "1+1?"}\n',
    "latin.jsonl": b'{"question": "\xfc", "answer": "2"}\n',
}
"""Files of the folder in which the commands run."""


@dataclass
class Outcome:
    """How one command line ended."""

    line: str
    code: object
    seconds: float
    errors: str
    faults: list[str] = field(default_factory=list)


class Grammar:
    """Draws command lines."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        ((_, config),) = composed([])
        values = flatten(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
        self.values = {key: literal(value) for key, value in values.items()}
        self.options = {group: options_of(group) for group in (*GROUPS, "sweep")}

    def line(self) -> list[str]:
        """Returns the words of a command line, of which some are mutated."""
        program = self.rng.choices(list(COMMANDS), weights=[6, 3, 2, 1])[0]
        words = [self._mutated(self._override()) for _ in range(self.rng.choice([0, 1, 1, 2, 2, 3]))]
        if program == "shaping-sweeps":
            words = [self.rng.choice(["plan", "plan", "plan", *SWEEPS_COMMANDS]), *words]
        elif program == "shaping-data":
            words = [self.rng.choice(["prepare", *DATA_COMMANDS]), *words]
        elif program == "reproduce-paper-tables":
            words = [self._mutated(f"{self.rng.choice(TABLES_KEYS)}={self._value(1)}") for _ in words[:2]]
        for _ in range(self.rng.choice([0, 0, 0, 0, 1, 2])):
            words.insert(self.rng.randint(0, len(words)), self.rng.choice([*FLAGS[program].split(), *OTHER_FLAGS]))
        return [program, *words]

    def _override(self) -> str:
        rng = self.rng
        keys, sweeps = list(self.values), [*self.options["sweep"], "good", "strings", "broken", "list"]
        kinds: list[Callable[[], str]] = [
            lambda: f"{rng.choice(keys)}={self._value(2)}",
            *[lambda: "{}={}".format(*rng.choice(list(self.values.items())))] * 5,
            *[self._choice] * 5,
            lambda: "+sweep=" + ",".join(rng.choices(sweeps, k=rng.randint(1, 2))),
            lambda: f"{rng.choice(['', '+', '++', '~'])}{rng.choice(keys)}={self._value(1)}",
            lambda: f"~{rng.choice(keys)}",
            lambda: f"{rng.choice(['', '+', '++'])}data.sources.m={self._value(2)}",
            lambda: f"{rng.choice(['', '+', '++'])}evaluation.benchmarks.M={self._value(2)}",
            lambda: (
                f"{rng.choice(['+data.sources.m', 'data.sources'])}={{{rng.choice(['', 'm:'])}{{kind:text,path:a}}}}"
            ),
            lambda: f"{rng.choice(['', '+'])}{rng.choice(['pretrain', 'midtrain'])}.mixture={self._mapping(0)}",
            lambda: f"{rng.choice(['', '+', '++'])}pretrain.mixture={{text:{rng.random()}}}",
            lambda: f"grpo.tasks=[{rng.choice(['good', 'broken', 'latin', 'missing'])}.jsonl]",
            lambda: f"hydra.{rng.choice(['mode', 'verbose', 'searchpath', 'run.dir'])}={self._value(1)}",
            lambda: f"hydra.launcher.{rng.choice(['workers', 'time', 'nodes', 'x'])}={self._value(0)}",
            lambda: f"hydra/launcher={rng.choice(['local', 'slurm', 'basic', 'x'])}",
            lambda: f"seed={rng.choice(['1,2', 'range(1,4)', 'range(0)', '1', '9' * 27])}",
        ]
        return rng.choice(kinds)()

    def _choice(self) -> str:
        group = self.rng.choice(GROUPS)
        option = self.rng.choice([*self.options[group], "broken", "latin", "nope"])
        return f"{group}={option}" + (f",{self.rng.choice(self.options[group])}" if self.rng.random() < 0.3 else "")

    def _value(self, depth: int) -> str:
        rng = self.rng
        if depth == 0 or rng.random() < 0.5:
            word = rng.choice(WORDS)
            return rng.choice([word, word, f"'{word}'", f'"{word}"', str(rng.randint(-3, 10 ** rng.randint(1, 20)))])
        kinds: list[Callable[[], str]] = [
            lambda: "[" + ",".join(self._value(depth - 1) for _ in range(rng.randint(0, 3))) + "]",
            lambda: self._mapping(depth - 1),
            lambda: ",".join(self._value(0) for _ in range(rng.randint(2, 3))),
            lambda: f"range({rng.randint(0, 5)},{rng.choice([0, 3, 10**9])})",
            lambda: f"{rng.choice(['choice', 'glob', 'interval', 'shuffle', 'sort', 'int', 'nope'])}({self._value(0)})",
        ]
        return rng.choice(kinds)()

    def _mapping(self, depth: int) -> str:
        keys = ["text", "chain3", "kind", "path", "group", "task", "items", "x", "a b", "1"]
        return (
            "{" + ",".join(f"{self.rng.choice(keys)}:{self._value(depth)}" for _ in range(self.rng.randint(0, 3))) + "}"
        )

    def _mutated(self, word: str) -> str:
        """Returns a word in which, at times, one or two characters are wrong."""
        for _ in range(self.rng.choice([0, 0, 0, 0, 0, 1, 2])):
            at = self.rng.randrange(len(word) + 1)
            character = self.rng.choice("=,.:[]{}()'\"+~@/\\$ #ax1-")
            word = self.rng.choice(
                [word[:at] + word[at + 1 :], word[:at] + character + word[at:], word[:at] + character + word[at + 1 :]]
            )
        return word


def run_line(words: list[str], folder: Path) -> Outcome:
    """Runs one command in `folder` and judges how it ended."""
    program, *arguments = words
    output, errors = io.StringIO(), io.StringIO()
    before, start = _listing(folder), time.process_time()
    code: object = 0
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SHAPING")}
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
        patch.object(sys, "argv", [program, *arguments]),
        patch.dict(os.environ, environment | {"HOME": str(folder), "HF_HUB_OFFLINE": "1"}, clear=True),
    ):
        try:
            importlib.import_module(COMMANDS[program]).main()
        except SystemExit as request:
            code = request.code or 0
        except BaseException:
            traceback.print_exc()
            code = "exception"
    outcome = Outcome(shlex.join(words), code, time.process_time() - start, errors.getvalue().strip())
    outcome.faults = list(_faults(outcome, program, written=_listing(folder) != before))
    return outcome


def _faults(outcome: Outcome, program: str, *, written: bool) -> Iterator[str]:
    lines = outcome.errors.splitlines()
    if outcome.code not in (0, 1, 2):
        yield f"exit code {outcome.code}"
    if found := EXCEPTION.search(outcome.errors):
        yield f"{found.group()} in the message"
    if outcome.code in (1, 2):
        # The mistakes of several cells are reported together, each in its line with the cell.
        is_sentence = len(lines) == 1 or (lines and all("[cell: " in line for line in lines))
        if not is_sentence or not lines[0].startswith(f"{program}: "):
            yield f"{len(lines)} lines of errors"
    if outcome.code == 2 and written:
        yield "something was written"
    if outcome.seconds > SECONDS:
        yield f"it took {outcome.seconds:.0f} s of processor time"


def _listing(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


def _nothing_to_run(*arguments: Any, **options: Any) -> Any:
    return SimpleNamespace(failed=[], blocked=[])


def _nothing_to_prepare(*arguments: Any, **options: Any) -> Any:
    raise StageFailure("data.shards: nothing is prepared here")


def fuzz(lines: int, seed: int, *, report: Callable[[Outcome], None] = lambda outcome: None) -> list[Outcome]:
    """Returns the outcomes of random command lines, which depend only on the seed."""
    grammar = Grammar(random.Random(seed))
    outcomes = []
    with (
        patch("sweeps.execute.launch.execute", _nothing_to_run),
        patch("sweeps.execute.launch.is_slurm_installed", lambda: False),
        patch("sweeps.commands.data.prepare_shards", _nothing_to_prepare),
        tempfile.TemporaryDirectory() as temporary,
    ):
        folder = Path(temporary) / "work"
        for _ in range(lines):
            shutil.rmtree(folder, ignore_errors=True)
            for name, content in FILES.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content if isinstance(content, bytes) else content.encode())
            Store.create(folder / "store")
            outcomes.append(run_line(grammar.line(), folder))
            report(outcomes[-1])
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="write every line and its outcome")
    options = parser.parse_args()

    def report(outcome: Outcome) -> None:
        if outcome.faults:
            print(f"{'; '.join(outcome.faults)}\n  $ {outcome.line!r}\n  {outcome.errors[-2000:]!r}", flush=True)

    outcomes = fuzz(options.lines, options.seed, report=report)
    if options.json:
        Path(options.json).write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    codes = Counter(str(outcome.code) for outcome in outcomes)
    failed = sum(bool(outcome.faults) for outcome in outcomes)
    counts = ", ".join(f"{count} with exit code {code}" for code, count in sorted(codes.items()))
    print(f"{len(outcomes)} command lines: {counts}; {failed} failed; slowest {max(o.seconds for o in outcomes):.1f} s")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
