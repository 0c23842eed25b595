"""Interruptions leave nothing behind: a tiny grid under random signals ends like an undisturbed one.

    python -m benchmarks.faults --minutes N [--json FILE] [--slurm] [--seed S]

Two sweeps share a store. At random moments a command, its fork server, a worker, the process group of either, or W&B's
service receives SIGKILL, SIGTERM, SIGHUP or SIGINT; commands that end are started again until both end with 0. Then
`benchmarks.fault_differences` compares the store and the processes with those of an undisturbed run. Rounds
follow each other until the time is up, and every difference is printed with the interruptions of its round. With
`--slurm` (a Slurm that `SLURM_CONF` names) every second round runs on it; there jobs are also requeued.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.fault_differences import differences, leftovers
from benchmarks.fault_targets import MARK, Target, Targets
from pipelines.logs import DEBUG_VARIABLE

REPOSITORY = Path(__file__).parents[1]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
PHASES = ("start", "training", "saving", "publishing")
PHASE_SECONDS = 4.0
"""How long an interruption waits for its phase before it falls where it may."""
FAULTS_PER_ROUND = 60
SETTLE_SECONDS = 240.0
"""After the interruptions of a round, the commands may take this long for what is left."""
GRACE_SECONDS = 15.0
"""How long processes may take to end after their command."""

TINY = [
    "data.text=[networkx]", "data.tasks_per_family=300", "data.vocab_size=300", "data.top_k=8",
    "model.layers=1", "model.d_model=16", "model.ffn=32", "model.heads=2", "model.kv_heads=1", "model.head_dim=8",
    "pretrain.tokens=65536", "pretrain.warmup_steps=2", "pretrain.milestones=2",
    "midtrain.tokens=8192", "midtrain.milestones=1",
    "grpo.steps=12", "grpo.prompts=4", "grpo.samples=4", "grpo.max_new_tokens=8", "grpo.milestones=1",
    "evaluation.max_new_tokens=8", "evaluation.benchmarks.Docstrings.items=8",
    *(f"evaluation.benchmarks.{name}.items=2" for name in (
        "Modules", "Continuations", "Boolean", "Order", "Chain-3", "Chain-4", "Chain-5", "Python")),
]  # fmt: skip
"""Every stage and every benchmark, in seconds."""
SWEEPS = (["objective=ce,precision"], ["objective=precision", "seed=1,2,3", "until=midtrain"])
"""The overrides of the two sweeps; they share stage runs."""


@dataclass
class Fault:
    """One interruption: what was sent to which process, and in which phase of a stage run it fell."""

    signal: str
    target: str
    phase: str
    seconds: float
    """Since the start of the round."""


@dataclass
class Round:
    """A store, its two commands, and the interruptions so far."""

    folder: Path
    launcher: str
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    faults: list[Fault] = field(default_factory=list)
    commands: dict[int, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)
    launches: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def store(self) -> Path:
        """The store that both sweeps share."""
        return self.folder / "store"

    def keep_running(self) -> None:
        """Start the command of each sweep that is not finished and does not run."""
        for number, overrides in enumerate(SWEEPS):
            command = self.commands.get(number)
            if command is not None and command.poll() is not None:
                del self.commands[number]
                # A submission to Slurm returns at once; the sweep is finished when nothing is left to submit.
                if command.returncode == 0 and (self.launcher == "local" or not self._queue()):
                    self.finished.add(number)
            if number not in self.finished and number not in self.commands and not self._queue():
                self.launches += 1
                self.commands[number] = self._launch(number, overrides)

    def _launch(self, number: int, overrides: list[str]) -> "subprocess.Popen[bytes]":
        environment = {**os.environ, MARK: self.mark, "PYTHONPATH": str(REPOSITORY), DEBUG_VARIABLE: ""}
        slurm = [f"hydra/launcher={self.launcher}", "hydra.launcher.time=5"] if self.launcher == "slurm" else []
        with (self.folder / f"command-{number}.log").open("ab") as log:
            log.write(f"--- launch {self.launches} after {self.seconds:.0f} s\n".encode())
            log.flush()
            return subprocess.Popen(
                [sys.executable, "-m", "sweeps.commands.run", "-m", *overrides, *TINY, *slurm],
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,  # it leads a process group, as in a terminal
            )

    def _queue(self) -> list[str]:
        if self.launcher == "local":
            return []
        return subprocess.run(["squeue", "-h", "-o", "%i"], capture_output=True, text=True, check=True).stdout.split()

    @property
    def seconds(self) -> float:
        """Since the start of the round."""
        return time.monotonic() - self.started

    def interrupt(self, rng: random.Random) -> None:
        """Send a random signal to a random process, in a random phase of a stage run if one reaches it in time."""
        number, phase, kind = rng.choice(SIGNALS), rng.choice(PHASES), rng.choice(Target.KINDS)
        reached = self._wait_for(phase)
        if kind == "requeue":
            if self.launcher == "slurm" and (jobs := self._queue()):
                job = rng.choice(jobs)
                subprocess.run(["scontrol", "requeue", job], capture_output=True, check=False)
                self._note("requeue", kind, reached)
            return
        target = Targets(self.mark, [command.pid for command in self.commands.values()]).choose(kind, rng)
        if target is not None and target.send(number):
            self._note(number.name, kind, reached)

    def _note(self, name: str, kind: str, phase: str | None) -> None:
        self.faults.append(Fault(name, kind, phase or "any", round(self.seconds, 2)))

    def _wait_for(self, phase: str) -> str | None:
        """Wait until a stage run enters `phase`; returns None if none does, or a command has ended."""
        mark = PHASE_MARKS[phase]
        known = set(self.store.glob(mark))
        deadline = time.monotonic() + PHASE_SECONDS
        while time.monotonic() < deadline:
            if any(command.poll() is not None for command in self.commands.values()):
                return None
            if set(self.store.glob(mark)) - known:
                return phase
            time.sleep(0.003)
        return None

    def run(self, rng: random.Random, *, faults: int, until: float) -> list[str]:
        """Interrupt up to `faults` times, or until `until`; then let it finish. Returns what differs from order."""
        try:
            while len(self.faults) < faults and time.monotonic() < until and len(self.finished) < len(SWEEPS):
                self.keep_running()
                time.sleep(rng.uniform(0.0, 1.0))
                self.interrupt(rng)
            return self.finish()
        finally:  # also if the harness itself is stopped
            for process in Targets.marked(self.mark):
                process.send(signal.SIGKILL)

    def finish(self) -> list[str]:
        """Let both commands finish, undisturbed. Returns what is left that should not be."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while len(self.finished) < len(SWEEPS) and time.monotonic() < deadline:
            self.keep_running()
            time.sleep(0.2)
        unfinished = [f"sweep {number} did not finish" for number in range(len(SWEEPS)) if number not in self.finished]
        return unfinished + self._processes_left()

    def _processes_left(self) -> list[str]:
        """The processes that have not ended with their command; they are killed."""
        deadline = time.monotonic() + GRACE_SECONDS
        while (processes := Targets.marked(self.mark)) and time.monotonic() < deadline:
            time.sleep(0.2)
        for process in processes:
            process.send(signal.SIGKILL)
        return [f"a process is left: {process.command_line}" for process in processes]


PHASE_MARKS = {
    "start": "*/*/leases/*.json",
    "training": "*/*/work-*/ledger.jsonl",
    "saving": "*/*/work-*/**/.*",
    "publishing": "*/*/work-*/result.json",
}
"""What appears in a store when a stage run enters a phase."""


def undisturbed(folder: Path) -> Path:
    """Run the two sweeps one after the other without interruptions; returns the store."""
    calm = Round(folder, "local")
    for number, overrides in enumerate(SWEEPS):
        command = calm._launch(number, overrides)
        if command.wait() != 0:
            log = (folder / f"command-{number}.log").read_text()
            raise SystemExit(f"the undisturbed run failed:\n{log[-4000:]}")
    return calm.store


def prepare(reference: Path, folder: Path, *, cached: bool) -> None:
    """A folder for a round. With `cached` its store has the tokens of `reference`, so that training starts at once."""
    folder.mkdir()
    if cached:
        store = folder / "store"
        store.mkdir()
        shutil.copy(reference / "STORE.json", store)
        shutil.copytree(reference / "cache", store / "cache", ignore=shutil.ignore_patterns("evaluations"))


def play(reference: Path, folder: Path, rng: random.Random, *, launcher: str, until: float) -> dict[str, Any]:
    """Play one round in `folder`, which is kept if something differs. Returns its interruptions and differences."""
    played = Round(folder, launcher)
    sentences = played.run(rng, faults=FAULTS_PER_ROUND, until=until)
    sentences += differences(reference, played.store) + leftovers(played.store)
    counts = f"{len(played.faults)} interruptions, {played.launches} launches, {len(sentences)} differences"
    say(f"{folder.name} ({launcher}): {counts}")
    for line in sentences:
        say(f"  {line}")
    if sentences:
        kept_folder = Path(tempfile.mkdtemp(prefix="shaping-faults-kept-")) / folder.name
        shutil.move(folder, kept_folder)
        say(f"  kept: {kept_folder}")
    else:
        shutil.rmtree(folder)
    return {"launcher": launcher, "faults": [asdict(fault) for fault in played.faults], "differences": sentences}


def say(line: str) -> None:
    """Print a line at once, also into a file."""
    print(line, flush=True)


def summarize(report: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Print and return how many interruptions there were, by signal, target and phase, and how many differences."""
    faults = [fault for entry in report for fault in entry["faults"]]
    different = sum(len(entry["differences"]) for entry in report)
    say(f"{len(faults)} interruptions in {len(report)} rounds, {different} differences (seed {seed})")
    counts = {key: dict(Counter(fault[key] for fault in faults)) for key in ("signal", "target", "phase")}
    for key, values in counts.items():
        say(f"  by {key}: " + ", ".join(f"{name} {count}" for name, count in sorted(values.items())))
    return {"seed": seed, "interruptions": len(faults), "differences": different, **counts, "rounds": report}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--slurm", action="store_true")
    options = parser.parse_args()
    if options.slurm and not (shutil.which("sbatch") and os.environ.get("SLURM_CONF")):
        parser.error("--slurm: no Slurm here; install it and set SLURM_CONF")

    rng = random.Random(options.seed)
    report: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="shaping-faults-") as name:
        (Path(name) / "undisturbed").mkdir()
        reference = undisturbed(Path(name) / "undisturbed")
        until = time.monotonic() + 60 * options.minutes
        while time.monotonic() < until:
            number = len(report) + 1
            folder = Path(name) / f"round-{number}"
            # The first round also interrupts the preparation of the data.
            prepare(reference, folder, cached=number > 1)
            launcher = "slurm" if options.slurm and number % 2 == 0 else "local"
            report.append(play(reference, folder, rng, launcher=launcher, until=until))
    summary = summarize(report, options.seed)
    if options.json:
        options.json.write_text(json.dumps(summary, indent=1))
    return int(summary["differences"] > 0)


if __name__ == "__main__":
    sys.exit(main())
