"""The judge: runs verifiers on batches of answers and shields the run from their failures."""

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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from pipelines.errors import StageFailure, UserError
from pipelines.verifiers.registry import VERIFIERS, Verifier

logger = logging.getLogger("pipelines")

LOAD_SECONDS = 120.0
"""Limit on the time in which a worker imports its function; sympy takes seconds on a busy machine."""

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
    """Verifies batches of answers. Worker processes start when they are first needed and end with the judge."""

    def __init__(self, workers: int | None = None) -> None:
        self._count = workers or min(4, os.cpu_count() or 1)
        self._workers: dict[str, list[_Worker]] = {}
        self._reported: set[str] = set()
        """Verifiers whose first failure was logged."""
        # The kernel kills a worker when the thread that started it ends, so these threads live as long as the judge.
        self._threads = ThreadPoolExecutor(self._count)

    def rewards(self, items: Sequence[Item]) -> list[Verdict]:
        """Returns the verdict on each item. Equal items, frequent among samples of one question, are verified once.

        Raises `UserError` if a verifier refuses this machine, and `StageFailure` if it cannot be loaded.
        """
        verdicts = [Verdict(0.0)] * len(items)
        # Indices of the items to verify, by verifier; `first` maps an item to the index of its first occurrence.
        first: dict[Item, int] = {}
        by_verifier: dict[str, list[int]] = {}
        for index, item in enumerate(items):
            name, answer, _ = item
            if answer is None:
                continue
            longest = VERIFIERS[name].longest
            if longest is not None and len(answer) > longest:
                verdicts[index] = Verdict(0.0, "too_long")
            elif first.setdefault(item, index) == index:
                by_verifier.setdefault(name, []).append(index)

        for name, indices in by_verifier.items():
            if VERIFIERS[name].in_process:
                verify = pkgutil.resolve_name(VERIFIERS[name].function)
                for index in indices:
                    verdicts[index] = Verdict(float(verify(*items[index][1:])))
            else:
                chosen = [items[index] for index in indices]
                for index, verdict in zip(indices, self._ask_workers(name, chosen), strict=True):
                    verdicts[index] = verdict
        return [verdicts[first.get(item, index)] for index, item in enumerate(items)]

    def _ask_workers(self, name: str, items: Sequence[Item]) -> list[Verdict]:
        """The verdicts of one verifier's workers, each of which takes the next item when it is free."""
        free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._team(name):
            free.put(worker)

        def ask(item: Item) -> Verdict:
            _, answer, reference = item
            worker = free.get()
            try:
                verdict = worker.ask(answer or "", reference)
                if verdict.failure and name not in self._reported:
                    self._reported.add(name)
                    logger.warning("the verifier %s failed on an answer: %s; failures are counted", name, worker.reason)
                return verdict
            finally:
                free.put(worker)

        return list(self._threads.map(ask, items))

    def _team(self, name: str) -> list["_Worker"]:
        """The workers of a verifier, all of which have imported its function."""
        if name not in self._workers:
            # Start all before waiting for any, so that they import at the same time.
            try:
                self._workers[name] = [_Worker(VERIFIERS[name]) for _ in range(self._count)]
            except OSError as error:
                raise StageFailure(f"no process can be started for the verifier {name!r}: {error}") from None
            for worker in self._workers[name]:
                worker.wait_until_ready()
        return self._workers[name]

    def close(self) -> None:
        """End the workers."""
        self._threads.shutdown()
        for team in self._workers.values():
            for worker in team:
                worker.kill()
        self._workers.clear()

    def __enter__(self) -> "Judge":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Worker:
    """One process of `pipelines.verifiers.worker`, started again after each time it had to be killed."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        self._process: subprocess.Popen[bytes] | None = None
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

    def kill(self) -> None:
        """End the process and everything that it started."""
        if self._process is None:
            return
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()
        self._process = None
