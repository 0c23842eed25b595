"""Interruptions leave nothing behind: a tiny grid under random signals ends like an undisturbed one.

    python -m benchmarks.faults --minutes N [--json FILE] [--slurm] [--seed S]

Two sweeps share a store. At random moments, or as a process is about to change a file while it starts, saves, publishes
or fills the cache (`benchmarks.fault_breakpoints`), a command, its fork server, a worker, the process group of either,
or W&B's service receives SIGKILL, SIGTERM, SIGHUP or SIGINT; commands that end are started again until both end with 0.
Then `benchmarks.fault_differences` compares the store and the processes with those of an undisturbed run. Rounds
follow each other until the time is up, and every difference is printed. The commands of the first round are started as
users do, those of the others are forked (`benchmarks.fault_commands`). With `--slurm` (a Slurm that `SLURM_CONF` names)
every round runs on it, where jobs are also requeued and cancelled.
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

from benchmarks import fault_targets
from benchmarks.fault_breakpoints import PHASES, Breakpoint
from benchmarks.fault_commands import adopt_orphans, import_libraries, start_command
from benchmarks.fault_differences import differences, leftovers, tracker_was_lost
from pipelines.configuration import TOKEN_STAGES
from pipelines.logs import DEBUG_VARIABLE

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
PAUSE_SECONDS = {"local": 0.6, "slurm": 5.0}
"""Between two interruptions at most, by launcher; a job of Slurm takes ten seconds to start."""
PHASE_SECONDS = 1.5
"""How long an interruption waits for its phase before it falls where it may."""
SKIPPED_OPERATIONS = 8
"""An interruption lets fewer operations of its phase pass than this."""
FAULTS_PER_ROUND = 50
FRESH_FAULTS = 10
"""Interruptions of the first round, whose commands need time to start."""
SETTLE_SECONDS = 400.0
"""After the interruptions of a round, the commands may take this long for what is left."""
GRACE_SECONDS = 15.0
"""How long processes may take to end after their command."""

TINY = [
    "data.text=[networkx]", "data.tasks_per_family=300", "data.vocab_size=300", "data.top_k=8",
    "model.layers=1", "model.d_model=16", "model.ffn=32", "model.heads=2", "model.kv_heads=1", "model.head_dim=8",
    "pretrain.tokens=65536", "pretrain.warmup_steps=2", "pretrain.milestones=2", "compute.micro_batch_tokens=512",
    "midtrain.tokens=8192", "midtrain.milestones=1",
    "grpo.steps=12", "grpo.prompts=4", "grpo.samples=4", "grpo.max_new_tokens=8", "grpo.milestones=1",
    "evaluation.max_new_tokens=8", "evaluation.benchmarks.Docstrings.items=8",
    *(f"evaluation.benchmarks.{name}.items=2" for name in (
        "Modules", "Continuations", "Boolean", "Order", "Chain-3", "Chain-4", "Chain-5", "Python")),
]  # fmt: skip
"""Every stage and every benchmark, in seconds."""
SWEEPS = {
    "local": (["objective=ce,precision"], ["objective=precision", "seed=1,2,3", "until=midtrain"]),
    "slurm": (["objective=precision"], ["objective=precision", "seed=1,2", "until=midtrain"]),
}
"""The overrides of two sweeps that share stage runs, by launcher."""
ON_SLURM = ["hydra/launcher=slurm", "hydra.launcher.time=5", "hydra.launcher.cpus=1"]


@dataclass
class Fault:
    """One interruption: what was sent to which process, and in which phase it fell."""

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
    breakpoint: Breakpoint
    forked: bool
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    faults: list[Fault] = field(default_factory=list)
    commands: dict[int, int] = field(default_factory=dict)
    """Number of a sweep -> process id of its command."""
    finished: set[int] = field(default_factory=set)
    launches: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def store(self) -> Path:
        """The store that both sweeps share."""
        return self.folder / "store"

    @property
    def sweeps(self) -> tuple[list[str], ...]:
        """The overrides of both sweeps."""
        return SWEEPS[self.launcher]

    @property
    def seconds(self) -> float:
        """Since the start of the round."""
        return time.monotonic() - self.started

    def keep_running(self) -> None:
        """Start the command of each sweep that is not finished and does not run."""
        statuses = self._reap()
        queue = self._queue() if self.launcher == "slurm" else []
        for number, command in list(self.commands.items()):
            if command in statuses:
                del self.commands[number]
                # A submission to Slurm returns at once; the sweep is finished when nothing is left to submit.
                if statuses[command] == 0 and not queue and self._is_done(number):
                    self.finished.add(number)
        for number in range(len(self.sweeps)):
            if number not in self.finished and number not in self.commands and not queue:
                self.launch(number)

    @staticmethod
    def _reap() -> dict[int, int]:
        """The exit statuses of the children that have ended."""
        statuses: dict[int, int] = {}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return statuses
            if not pid:
                return statuses
            statuses[pid] = os.waitstatus_to_exitcode(status)

    def _is_done(self, number: int) -> bool:
        """Whether the newest launch of a sweep on Slurm found nothing to submit; a local one has done everything."""
        log = (self.folder / f"command-{number}.log").read_text(errors="replace").rpartition("--- launch")[2]
        return self.launcher == "local" or "\n0 stage runs submitted, 0 were queued" in log

    def launch(self, number: int) -> int:
        """Start the command of a sweep; returns its process id."""
        self.launches += 1
        log = self.folder / f"command-{number}.log"
        with log.open("a") as file:
            file.write(f"--- launch {self.launches} after {self.seconds:.0f} s\n")
        words = [*self.sweeps[number], *TINY, *(ON_SLURM if self.launcher == "slurm" else [])]
        environment = {fault_targets.MARK: self.mark, DEBUG_VARIABLE: ""}
        self.commands[number] = start_command(words, log, forked=self.forked, environment=environment)
        return self.commands[number]

    @staticmethod
    def _queue() -> list[str]:
        return subprocess.run(["squeue", "-h", "-r", "-o", "%i"], capture_output=True, text=True).stdout.split()

    def interrupt(self, rng: random.Random) -> None:
        """Interrupt one process, in a random phase of a stage run if one reaches it in time."""
        if self.launcher == "slurm" and rng.random() < 0.4:
            self._interrupt_job(rng)
            return
        number, phase, kind = rng.choice(SIGNALS), rng.choice(PHASES), rng.choice(fault_targets.KINDS)
        stopped = None
        if phase != "training" and self.forked and self.launcher == "local":
            skip = rng.randrange(SKIPPED_OPERATIONS)
            stopped = self.breakpoint.wait(phase, skip=skip, seconds=PHASE_SECONDS)
        live = fault_targets.processes(self.mark)
        target = fault_targets.choose(kind, live, commands=self.commands.values(), near=stopped, rng=rng)
        if target and target.send(number, group=kind.endswith("group")):
            self._note(number.name, kind, phase if stopped else self._current_phase())
        self.breakpoint.release()

    def _interrupt_job(self, rng: random.Random) -> None:
        """Requeue or cancel a random job, or send it a signal through Slurm."""
        job, word = rng.choice(self._queue() or [""]), rng.choice(["requeue", "cancel", "SIGUSR2", "SIGTERM"])
        command = {"requeue": ["scontrol", "requeue"], "cancel": ["scancel"]}.get(word, ["scancel", f"--signal={word}"])
        if job and subprocess.run([*command, job], capture_output=True, check=False).returncode == 0:
            self._note(word, "job", self._current_phase())

    def _current_phase(self) -> str:
        """Where an interruption falls that did not wait for a phase."""
        return "training" if any(self.store.glob("*/*/work-*/ledger.jsonl")) else "elsewhere"

    def _note(self, name: str, kind: str, phase: str) -> None:
        self.faults.append(Fault(name, kind, phase, round(self.seconds, 2)))

    def run(self, rng: random.Random, *, faults: int, until: float) -> list[str]:
        """Interrupt up to `faults` times, or until `until`; then let it finish. Returns what differs from order."""
        try:
            while len(self.faults) < faults and time.monotonic() < until and len(self.finished) < len(self.sweeps):
                self.keep_running()
                time.sleep(rng.uniform(0.0, PAUSE_SECONDS[self.launcher]))
                self.interrupt(rng)
            return self.finish()
        finally:  # also if the harness itself is stopped
            self.breakpoint.release()
            for process in fault_targets.processes(self.mark).values():
                process.send(signal.SIGKILL)

    def finish(self) -> list[str]:
        """Let both commands finish, undisturbed. Returns what is left that should not be."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while len(self.finished) < len(self.sweeps) and time.monotonic() < deadline:
            self.keep_running()
            time.sleep(0.1 if self.launcher == "local" else 1.0)
        sweeps = range(len(self.sweeps))
        unfinished = [f"sweep {number} did not finish" for number in sweeps if number not in self.finished]
        return unfinished + self._processes_left()

    def _processes_left(self) -> list[str]:
        """The processes that have not ended with their command; they are killed."""
        deadline = time.monotonic() + GRACE_SECONDS
        while (left := fault_targets.processes(self.mark)) and time.monotonic() < deadline:
            self._reap()
            time.sleep(0.1)
        for process in left.values():
            process.send(signal.SIGKILL)
        return [f"a process is left: {process.name} {process.command_line}" for process in left.values()]


def undisturbed(folder: Path, launcher: str, breakpoint: Breakpoint) -> Path:
    """Run the two sweeps on this machine, one after the other, without interruptions; returns the store."""
    calm = Round(folder, "local", breakpoint, forked=False)
    for overrides in SWEEPS[launcher]:
        log = folder / "command.log"
        command = start_command([*overrides, *TINY], log, forked=False, environment={DEBUG_VARIABLE: ""})
        if os.waitpid(command, 0)[1] != 0:
            raise SystemExit(f"the undisturbed run failed:\n{log.read_text()[-4000:]}")
    return calm.store


def prepare(reference: Path, folder: Path, *, cached: bool) -> None:
    """A folder for a round. With `cached` its store has the tokens of `reference`, so that training starts at once."""
    folder.mkdir()
    if cached:
        store = folder / "store"
        store.mkdir()
        shutil.copy(reference / "STORE.json", store)
        shutil.copytree(reference / "cache", store / "cache", ignore=shutil.ignore_patterns("evaluations"))


def play(reference: Path, game: Round, rng: random.Random, *, faults: int, until: float) -> dict[str, Any]:
    """Play one round; its folder is kept if something differs. Returns its interruptions and differences."""
    sentences = game.run(rng, faults=faults, until=until)
    sentences += differences(reference, game.store) + leftovers(game.store)
    trained = [run for stage in TOKEN_STAGES for run in game.store.glob(f"{stage}/*")]
    lost = sum(tracker_was_lost(run) for run in trained if (run / "state.json").exists())
    say(
        f"{game.folder.name} ({game.launcher}): {len(game.faults)} interruptions in {game.seconds:.0f} s, "
        f"{game.launches} launches, {lost} of {len(trained)} training runs lost W&B, {len(sentences)} differences"
    )
    for line in sentences:
        say(f"  {line}")
    if sentences:
        kept_folder = Path(tempfile.mkdtemp(prefix="shaping-faults-kept-")) / game.folder.name
        shutil.move(game.folder, kept_folder)
        say(f"  kept: {kept_folder}")
    else:
        shutil.rmtree(game.folder)
    faults_noted = [asdict(fault) for fault in game.faults]
    return {"launcher": game.launcher, "faults": faults_noted, "differences": sentences}


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

    rng, launcher = random.Random(options.seed), "slurm" if options.slurm else "local"
    report: list[dict[str, Any]] = []
    adopt_orphans()
    import_libraries()
    stops = Breakpoint()
    stops.install()
    with tempfile.TemporaryDirectory(prefix="shaping-faults-") as name:
        (Path(name) / "undisturbed").mkdir()
        reference = undisturbed(Path(name) / "undisturbed", launcher, stops)
        until = time.monotonic() + 60 * options.minutes
        while time.monotonic() < until:
            is_first = not report
            folder = Path(name) / f"round-{len(report) + 1}"
            # The first round also interrupts the preparation of the data.
            prepare(reference, folder, cached=not is_first)
            game = Round(folder, launcher, stops, forked=not is_first)
            faults = FRESH_FAULTS if is_first else FAULTS_PER_ROUND
            report.append(play(reference, game, rng, faults=faults, until=until))
    summary = summarize(report, options.seed)
    if options.json:
        options.json.write_text(json.dumps(summary, indent=1))
    return int(summary["differences"] > 0)


if __name__ == "__main__":
    sys.exit(main())
