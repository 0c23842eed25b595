"""Puts answers to their verifiers and keeps whatever these do away from the run."""

import json
import math
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from pipelines.errors import StageFailure
from pipelines.verifiers.registry import LONGEST_ANSWER, VERIFIERS, Verifier

LOAD_SECONDS = 120.0
"""Time for a worker to import its function; sympy alone takes seconds on a busy machine."""


KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
"""What a worker keeps of the environment, which holds keys and tokens that no program under test should read."""


class Verdict(NamedTuple):
    """A reward between 0 and 1, and what went wrong on the way to it, if anything: `timeout` or `error`."""

    reward: float
    failure: str | None = None


class Judge:
    """Verifies batches of answers; worker processes start when they are first needed and end with the judge."""

    def __init__(self, workers: int | None = None) -> None:
        self._count = workers or min(4, os.cpu_count() or 1)
        self._workers: dict[str, list[_Worker]] = {}

    def rewards(self, items: Sequence[tuple[str, str | None, str]]) -> list[Verdict]:
        """The verdict on each (verifier's name, answer or None where none was found, reference); equal items are put to
        their verifier once, since samples of one question often agree.

        Raises `StageFailure` where a verifier cannot be loaded at all.
        """
        verdicts: list[Verdict] = [Verdict(0.0)] * len(items)
        waiting: dict[str, queue.SimpleQueue[int]] = {}
        first: dict[tuple[str, str | None, str], int] = {}
        for index, (name, answer, reference) in enumerate(items):
            if answer is None or len(answer) > LONGEST_ANSWER or first.setdefault(items[index], index) != index:
                continue
            if name == "exact":
                verdicts[index] = Verdict(float(answer == reference))
            else:
                waiting.setdefault(name, queue.SimpleQueue()).put(index)

        def serve(worker: _Worker, indices: "queue.SimpleQueue[int]") -> None:
            while True:
                try:
                    index = indices.get_nowait()
                except queue.Empty:
                    return
                _, answer, reference = items[index]
                verdicts[index] = worker.ask(answer or "", reference)

        for name, indices in waiting.items():
            threads = [
                threading.Thread(target=serve, args=(worker, indices)) for worker in self._team(name)[: indices.qsize()]
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return [verdicts[first.get(item, index)] for index, item in enumerate(items)]

    def _team(self, name: str) -> list["_Worker"]:
        if name not in self._workers:
            self._workers[name] = [_Worker(VERIFIERS[name]) for _ in range(self._count)]
            for worker in self._workers[name]:
                worker.wait_until_ready()
        return self._workers[name]

    def close(self) -> None:
        """End the workers."""
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
    """One process of `pipelines.verifiers.worker`, started again whenever it had to be killed."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        self._start()

    def _start(self) -> None:
        root = Path(__file__).parents[2]
        limit = [str(self._verifier.processor_seconds)] if self._verifier.processor_seconds else []
        self._ready = False
        self._received = b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.verifiers.worker", self._verifier.function, *limit],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # a group of its own, so that killing it takes along what it forked
            env={
                **{key: os.environ[key] for key in KEPT if key in os.environ},
                "PYTHONPATH": os.pathsep.join([str(root), *filter(None, sys.path)]),
            },
        )

    def wait_until_ready(self) -> None:
        """Return once the function is imported; raises `StageFailure` where it cannot be."""
        if self._ready:
            return
        reply = self._read(LOAD_SECONDS)
        if reply != "ready":
            self.kill()
            reason = reply["error"] if isinstance(reply, dict) else f"no answer in {LOAD_SECONDS:.0f} s"
            raise StageFailure(f"the verifier {self._verifier.function} cannot be loaded: {reason}")
        self._ready = True

    def ask(self, answer: str, reference: str) -> Verdict:
        """The verdict on one answer; afterwards the worker is ready for the next."""
        self.wait_until_ready()
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps([answer, reference]).encode() + b"\n")
            reply = self._read(self._verifier.seconds)
        except BrokenPipeError:
            reply = None
        if isinstance(reply, int | float) and math.isfinite(reply):
            return Verdict(min(1.0, max(0.0, float(reply))))
        if reply == "timeout":
            return Verdict(0.0, "timeout")
        if isinstance(reply, dict | float):
            return Verdict(0.0, "error")
        failure = "timeout" if self._process.poll() is None else "error"
        self.kill()
        self._start()
        return Verdict(0.0, failure)

    def _read(self, seconds: float) -> Any:
        """The next reply, or None where the process ends or takes longer."""
        assert self._process.stdout
        deadline = time.monotonic() + seconds
        while b"\n" not in self._received:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
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
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()
