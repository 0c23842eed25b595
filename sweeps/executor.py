"""Runs the missing part of a plan on this machine: as many stage runs at once as there are workers.

Among the stage runs that could start, the one with the longest chain of work behind it goes first, so that no core
is left with one long chain at the end. A stage run that fails blocks its descendants and nothing else.
"""

import os
import signal
import time
from dataclasses import dataclass, field

from submitit.local.local import LocalJob

from pipelines.cell import TrackingConfig
from sweeps.display import Display
from sweeps.plan import Plan, StageRun
from sweeps.store import Store
from sweeps.warm import WarmExecutor
from sweeps.work import perform

POLL_SECONDS = 0.05
GRACE_SECONDS = 10.0
"""How long a worker that was asked to stop may take to put its things in order."""


@dataclass
class Outcome:
    """What became of a plan: signatures by fate, and the errors of those that failed."""

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """Done before this command began."""
    failed: dict[str, str] = field(default_factory=dict)
    blocked: list[str] = field(default_factory=list)
    seconds: float = 0.0
    stage_seconds: float = 0.0
    """Sum of the seconds that the stage runs done here took."""


def execute(plan: Plan, store: Store, tracking: TrackingConfig, workers: int, display: Display) -> Outcome:
    """Run what `plan` misses in `store`; returns when all is done, failed or blocked.

    Raises `KeyboardInterrupt` after its workers have stopped, when the person asks to stop.
    """
    outcome = Outcome(skipped=[s for s, run in plan.runs.items() if _is_done(store, run)])
    waiting = {s: run for s, run in plan.runs.items() if s not in outcome.skipped}
    display.start(plan, store, outcome)
    if not waiting:
        display.stop(outcome)
        return outcome
    began = time.time()
    # One folder a command: submitit names jobs by process id, and process ids come round again.
    jobs_folder = store.root / "jobs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    executor = WarmExecutor(jobs_folder)
    priority = {s: _chain_length(plan, s) for s in waiting}
    running: dict[str, LocalJob[None]] = {}
    try:
        while waiting or running:
            for signature, job in list(running.items()):
                if job.done():
                    del running[signature]
                    _settle(plan.runs[signature], job, store, plan, waiting, outcome)
                    display.ended(plan.runs[signature], outcome)
            ready = [s for s, run in waiting.items() if not run.parent or run.parent[1] not in waiting | running]
            for signature in sorted(ready, key=lambda s: -priority[s])[: max(0, workers - len(running))]:
                run = waiting.pop(signature)
                running[signature] = _submit(executor, run, store, tracking)
                display.started(run)
            display.refresh(list(running))
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        display.stopping(list(running))
        stop(list(running.values()))
        raise
    finally:
        outcome.seconds = time.time() - began
        display.stop(outcome)
    return outcome


def _is_done(store: Store, run: StageRun) -> bool:
    return (store.run(run.stage, run.signature).folder / "result.json").exists()


def _chain_length(plan: Plan, signature: str) -> int:
    return 1 + max((_chain_length(plan, child.signature) for child in plan.children(signature)), default=0)


def _submit(executor: WarmExecutor, run: StageRun, store: Store, tracking: TrackingConfig) -> LocalJob[None]:
    job = executor.submit(perform, str(store.root), run.spec, tracking)
    assert isinstance(job, LocalJob)
    return job


def _settle(
    run: StageRun,
    job: LocalJob[None],
    store: Store,
    plan: Plan,
    waiting: dict[str, StageRun],
    outcome: Outcome,
) -> None:
    """Sort a stage run whose worker has ended into done or failed (blocking what needs it)."""
    stored = store.run(run.stage, run.signature)
    if result := stored.result:
        outcome.done.append(run.signature)
        outcome.stage_seconds += result["seconds"]
        return
    attempts = stored.state.get("attempts") or [{}]
    error = attempts[-1].get("error")
    if not error:
        code = job._process.poll() if job._process else None
        error = f"its worker died without a word ({_cause(code)})"
    outcome.failed[run.signature] = f"{error}; log: {job.paths.stderr}"
    for descendant in plan.descendants(run.signature):
        if waiting.pop(descendant.signature, None):
            outcome.blocked.append(descendant.signature)


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"{name}, perhaps out of memory" if -code == signal.SIGKILL else name
    return f"exit code {code}"


def stop(jobs: list[LocalJob[None]]) -> None:
    """Ask workers to stop, wait a little, then kill those that have not; a second Ctrl-C kills at once."""
    for job in jobs:
        job.cancel()
    try:
        deadline = time.time() + GRACE_SECONDS
        while time.time() < deadline and not all(job.done() for job in jobs):
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        pass
    for job in jobs:
        if not job.done() and job._process is not None:
            job._process.send_signal(signal.SIGKILL)
