"""The judge: runs verifiers on batches of answers and shields the run from their failures.

Answers are verified in worker processes while the caller goes on, for example with sampling more of them.
"""

import contextlib
import json
import logging
import math
import os
import pkgutil
import queue
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from pipelines.cores import share_of_cores
from pipelines.errors import Interrupted, StageFailure, UserError
from pipelines.verifiers.registry import VERIFIERS, Verifier

logger = logging.getLogger("pipelines")

LOAD_SECONDS = 120.0
"""Limit on the time in which a worker imports its function; sympy takes seconds on a busy machine."""

POLL_SECONDS = 0.5
"""Time between two looks for a signal while verdicts are waited for."""

KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
"""The only environment variables that a worker gets. Others hold keys and tokens, which no tested program may read."""

Item = tuple[str, str | None, str]
"""The verifier's name, the answer (None if the response has none) and the reference."""


FAILURES = ("timeout", "error", "too_long")
"""How verifying can fail: the verifier takes too long or raises, or the answer is longer than it reads."""


class Verdict(NamedTuple):
    """A reward between 0 and 1, and how the verification failed, if it did: one of `FAILURES`."""

    reward: float
    failure: str | None = None


class Judge:
    """Verifies answers in worker processes, which start when they are first needed and end with the judge."""

    def __init__(self, workers: int | None = None) -> None:
        """`workers`: most answers that are verified at a time, by default as many as there are cores."""
        self._teams: dict[str, _Team] = {}
        # The kernel kills a worker when the thread that started it ends, so these threads live as long as the judge.
        self._threads = ThreadPoolExecutor(workers or share_of_cores(), thread_name_prefix="judge")

    def rewards(self, items: Sequence[Item]) -> list[Verdict]:
        """Returns the verdict on each item. Equal items, frequent among samples of one question, are verified once.

        Raises `UserError` if a verifier refuses this machine, and `StageFailure` if it cannot be loaded.
        """
        with self.verification() as verification:
            verification.add(items)
            return verification.verdicts()

    def verification(self) -> "Verification":
        """A batch whose items are added one after another, and verified while others are still sampled."""
        return Verification(self._started)

    def _started(self, item: Item) -> "Verdict | Future[Verdict]":
        """The verdict on an item, or what will have it."""
        name, answer, reference = item
        if answer is None:
            return Verdict(0.0)
        verifier = VERIFIERS[name]
        if verifier.longest is not None and len(answer) > verifier.longest:
            return Verdict(0.0, "too_long")
        if verifier.in_process:
            return Verdict(float(pkgutil.resolve_name(verifier.function)(answer, reference)))
        if name not in self._teams:
            self._teams[name] = _Team(name, verifier)
        return self._threads.submit(self._teams[name].ask, answer, reference)

    def close(self) -> None:
        """End the workers at once, also those that still verify something."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for team in self._teams.values():
            team.stop()
        self._threads.shutdown()
        for team in self._teams.values():
            team.clear()
        self._teams.clear()

    def __enter__(self) -> "Judge":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Verification:
    """A batch of items that a judge verifies while more are added. Leaving its context drops what has not begun."""

    def __init__(self, start: Callable[[Item], "Verdict | Future[Verdict]"]) -> None:
        self._start = start
        self._outcomes: list[Verdict | Future[Verdict]] = []
        self._first: dict[Item, Verdict | Future[Verdict]] = {}
        """The outcome of each different item."""
        self._failed: list[Future[Verdict]] = []

    def add(self, items: Sequence[Item]) -> None:
        """Begin to verify items. Raises what `Judge.rewards` raises, if an earlier item has found it out by now."""
        for item in items:
            if item not in self._first:
                self._first[item] = outcome = self._start(item)
                if isinstance(outcome, Future):
                    outcome.add_done_callback(self._note)
            self._outcomes.append(self._first[item])
        if self._failed:
            self._failed[0].result()

    def _note(self, outcome: "Future[Verdict]") -> None:
        if not outcome.cancelled() and outcome.exception() is not None:
            self._failed.append(outcome)

    def verdicts(self, interrupted: Callable[[], bool] = lambda: False) -> list[Verdict]:
        """Waits for the verdicts, in the order in which the items were added. Raises what `Judge.rewards` raises.

        Raises `Interrupted` once `interrupted()` is true while there is something to wait for.
        """
        waiting = {outcome for outcome in self._outcomes if isinstance(outcome, Future)}
        while waiting:
            done, waiting = wait(waiting, POLL_SECONDS, return_when=FIRST_EXCEPTION)
            for outcome in done:
                outcome.result()
            if waiting and interrupted():
                raise Interrupted("asked to stop while answers were verified")
        return [outcome.result() if isinstance(outcome, Future) else outcome for outcome in self._outcomes]

    def __enter__(self) -> "Verification":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for outcome in self._first.values():
            if isinstance(outcome, Future):
                outcome.cancel()


class _Team:
    """The worker processes of one verifier: each thread of the judge takes one that is free, or starts another."""

    def __init__(self, name: str, verifier: Verifier) -> None:
        self._name, self._verifier = name, verifier
        self._workers: list[_Worker] = []
        self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._unusable: UserError | StageFailure | None = None
        """Why the verifier cannot be used on this machine, once a worker has found out."""
        self._reported = False
        """Whether its first failure was logged."""
        self._stopped = False

    def ask(self, answer: str, reference: str) -> Verdict:
        """The verdict of a worker. Raises `UserError` or `StageFailure` if none can be had, also for later answers."""
        if self._unusable is not None:
            raise self._unusable
        worker = self._taken()
        try:
            verdict = worker.ask(answer, reference)
            if verdict.failure and not self._reported and not self._stopped:
                self._reported = True
                reason = worker.reason
                logger.warning("the verifier %s failed on an answer: %s; failures are counted", self._name, reason)
            return verdict
        except (UserError, StageFailure) as error:
            self._unusable = error
            raise
        finally:
            self._free.put(worker)

    def _taken(self) -> "_Worker":
        with contextlib.suppress(queue.Empty):
            return self._free.get_nowait()
        try:
            worker = _Worker(self._verifier)
        except OSError as error:
            if not self._workers:
                reason = f"no process can be started for the verifier {self._name!r}: {error}"
                raise StageFailure(reason) from None
            return self._free.get()
        self._workers.append(worker)
        if self._stopped:
            worker.stop()
        return worker

    def stop(self) -> None:
        """Have the workers end, so that no thread waits for an answer."""
        self._stopped = True
        for worker in self._workers:
            worker.stop()

    def clear(self) -> None:
        """Remove the workers, of which no thread has one."""
        for worker in self._workers:
            worker.kill()


class _Worker:
    """One process of `pipelines.verifiers.worker`, started again after each time it had to be killed."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self.start()

    def start(self) -> None:
        """Start the process if it does not run. Raises `OSError` if the machine has no room for one."""
        if self._process:
            return
        root = Path(__file__).parents[2]
        limit = [str(self._verifier.processor_seconds)] if self._verifier.processor_seconds else []
        self.reason = ""
        self._ready = False
        self._received = b""
        self._process = subprocess.Popen(
            # -P: a folder `pipelines` in the working directory must not hide this package
            [
                sys.executable,
                "-P",
                "-m",
                "pipelines.verifiers.worker",
                self._verifier.function,
                self._verifier.reads,
                *limit,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # a process group, so that `kill` reaches what the worker forked
            env={
                **{key: os.environ[key] for key in KEPT_VARIABLES if key in os.environ},
                "PYTHONPATH": os.pathsep.join([str(root), *filter(None, sys.path)]),
            },
        )
        if self._stopped:
            self._signal()

    def wait_until_ready(self) -> None:
        """Wait until the function is imported. Raises `UserError` if it refuses this machine, else `StageFailure`."""
        if self._ready:
            return
        reply = self._read(LOAD_SECONDS)
        if reply != "ready":
            self.kill()
            if isinstance(reply, dict) and "refused" in reply:
                raise UserError(reply["refused"])
            reason = reply["error"] if isinstance(reply, dict) else f"no answer in {LOAD_SECONDS:.0f} s"
            raise StageFailure(f"the verifier {self._verifier.function} cannot be loaded: {reason}")
        self._ready = True

    def ask(self, answer: str, reference: str) -> Verdict:
        """Returns the verdict on one answer and leaves a worker that can take the next."""
        try:
            self.start()
        except OSError as error:
            self.reason = f"no process can be started: {error}"
            return Verdict(0.0, "error")
        self.wait_until_ready()
        assert self._process
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps([answer, reference]).encode() + b"\n")
            reply = self._read(self._verifier.seconds)
        except BrokenPipeError:
            reply = None
        if isinstance(reply, int | float) and math.isfinite(reply):
            cut = min(1.0, max(0.0, float(reply)))
            # Of ours, a reward above 1 is cut; a plugin's would be another reward than its author means.
            if cut == reply or self._verifier.source is None:
                return Verdict(cut)
        if reply == "timeout":
            self.reason = f"it takes more than {self._verifier.processor_seconds} s of processor time"
            return Verdict(0.0, "timeout")
        if reply is not None:  # an exception, or a reward that is no number between 0 and 1
            outside = f"it returned {reply}, no number between 0 and 1"
            self.reason = str(reply["error"]) if isinstance(reply, dict) else outside
            return Verdict(0.0, "error")
        # No reply: the function still runs, or the process has died.
        failure = "timeout" if self._process.poll() is None else "error"
        self.reason = f"it takes more than {self._verifier.seconds} s" if failure == "timeout" else "its process died"
        self.kill()
        return Verdict(0.0, failure)

    def _read(self, seconds: float) -> Any:
        """The next reply, or None if the process ends or needs more than `seconds`."""
        assert self._process
        assert self._process.stdout
        deadline = time.monotonic() + seconds
        while b"\n" not in self._received:
            seconds_left = deadline - time.monotonic()
            if seconds_left <= 0 or not select.select([self._process.stdout], [], [], seconds_left)[0]:
                return None
            part = os.read(self._process.stdout.fileno(), 65536)
            if not part:
                self._process.wait()
                return None
            self._received += part
        line, self._received = self._received.split(b"\n", 1)
        return json.loads(line)

    def stop(self) -> None:
        """Kill the process for good, without waiting; another thread may be in `ask`, and then has a reply soon."""
        self._stopped = True
        self._signal()

    def _signal(self) -> None:
        """Kill the process and everything that it started, without waiting."""
        process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def kill(self) -> None:
        """End the process and everything that it started."""
        if self._process is None:
            return
        self._signal()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()
        self._process = None
