"""Whether a program passes its tests, with the two in different processes.

For each program the worker that imports this module forks a child for the tests (`pipelines.verifiers.unit_tests`), and
its nursery, a process without secrets in namespaces of its own, forks one for the program
(`pipelines.verifiers.program`). Both are confined to computing (`pipelines.verifiers.confinement`), have two pipes
between them, and only plain values cross. The tests decide, and report to the worker through a third pipe that the
program does not have.

A program is wrong when it uses too much processor time, which does not depend on how busy the machine is, or does
nothing for some seconds. What is not the program's fault - a process that cannot be forked or confined, or that
something else has killed - raises `SandboxFailure`.

The sandbox is tried when this module is loaded: where it does not close, or right programs do not pass, the import
raises `UserError` with the reason.
"""

import contextlib
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # this process may have no threads, and a child cannot start any

from pipelines.errors import UserError
from pipelines.processes import die_with_parent
from pipelines.verifiers import namespaces
from pipelines.verifiers.confinement import SECONDS, confine, keep_descriptors
from pipelines.verifiers.nursery import load_libraries, processor_seconds
from pipelines.verifiers.sandbox_check import PROGRAM, TESTS
from pipelines.verifiers.unit_tests import outcome

LOAD_SECONDS = 60.0
"""Limit on the time in which a nursery starts."""
TICK = 1.0
"""Seconds between two looks at the processor time of the children."""
IDLE_TICKS = 8
"""After so many looks at which neither child has worked, both wait for nothing, and the program is wrong."""
_WORKED = 0.001
"""Seconds of processor time in a tick that count as work."""
COMMAND = [sys.executable, "-P", "-m", "pipelines.verifiers.nursery"]


class SandboxFailure(Exception):
    """A program could not be judged, and not by its own fault."""


class Nursery:
    """The process that programs are forked from, seen from the worker."""

    def __init__(self, command: list[str]) -> None:
        """Start it. Raises `SandboxFailure` with the reason if it cannot."""
        self.command = command
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {
            "PYTHONPATH": str(namespaces.PACKAGE.parent), "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1",
            "OPENBLAS_NUM_THREADS": "1", "LANG": "C.UTF-8",
        } | {key: os.environ[key] for key in ("LD_LIBRARY_PATH", "PATH") if key in os.environ}  # fmt: skip
        with theirs:
            self._process = subprocess.Popen(
                command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
            )
        self._control.settimeout(LOAD_SECONDS)
        self.broken = False
        """Whether it has ended or does not answer."""
        try:
            self._reply()
        except SandboxFailure:
            self.close()
            raise

    def ask(self, request: str, pipes: tuple[int, ...] = ()) -> Any:
        """The reply to a request. Raises `SandboxFailure` if there is none or it is a failure."""
        try:
            socket.send_fds(self._control, [request.encode()], pipes)
        except OSError as error:
            self.broken = True
            raise SandboxFailure(f"the process that programs are forked from has ended: {error}") from None
        return self._reply()

    def _reply(self) -> Any:
        try:
            received = self._control.recv(1 << 16)
        except OSError as error:
            self.broken = True
            raise SandboxFailure(f"the process that programs are forked from does not answer: {error}") from None
        if not received:
            self.broken = True
            self._process.kill()
            assert self._process.stderr
            last = self._process.stderr.read()[-300:].decode(errors="replace").strip().split("\n")[-1]
            raise SandboxFailure(last or "the process that programs are forked from has ended")
        reply = json.loads(received)
        if isinstance(reply, dict) and "failure" in reply:
            raise SandboxFailure(reply["failure"])
        return reply

    def close(self) -> None:
        """End the process and everything that it has forked."""
        self._process.kill()
        self._process.wait()
        assert self._process.stderr
        self._process.stderr.close()
        self._control.close()


def passes(answer: str, reference: str) -> float:
    """1.0 if the program `answer` runs to its end, as do then the tests `reference`, without an exception, else 0.0.

    Raises `SandboxFailure`.
    """
    global _nursery
    if _nursery.broken:
        _nursery.close()
        _nursery = Nursery(_nursery.command)
    return float(why_wrong(answer, reference, _nursery) is None)


def why_wrong(program: str, tests: str, nursery: Nursery) -> str | None:
    """Why a program does not pass its tests, or None if it passes. Raises `SandboxFailure`."""
    with contextlib.ExitStack() as opened:
        try:
            to_program, from_program, _ = pipes = [_Pipe(opened) for _ in range(3)]
        except OSError as error:
            raise SandboxFailure(f"no pipe can be opened: {error}") from None
        nursery.ask("run", (to_program.reader.fileno(), from_program.writer.fileno()))
        to_program.reader.close()
        from_program.writer.close()
        reported, result = None, {}
        try:
            reported, status, seconds = _tested(f"{program}\n", f"{tests}\n", nursery=nursery, pipes=pipes)
            result = json.loads(reported or b"{}")
        finally:
            ended = nursery.ask("await end" if "ended" in result else "end")
    if reported is None:
        return f"the program did nothing for {IDLE_TICKS * TICK:.0f} s"
    if not reported:
        _require_own_fault("tests", status, seconds)
        return f"the tests used more than {SECONDS} s of processor time"
    if "failure" in result:
        raise SandboxFailure(result["failure"])
    if "wrong" in result and not ended["alive"]:
        _require_own_fault("program", ended["status"], ended["seconds"])
    return result.get("wrong")


class _Pipe:
    """A pipe whose ends are closed at the latest when `opened` is."""

    def __init__(self, opened: contextlib.ExitStack) -> None:
        reader, writer = os.pipe()
        self.reader = opened.enter_context(os.fdopen(reader, "rb", 0))
        self.writer = opened.enter_context(os.fdopen(writer, "wb", 0))


def _require_own_fault(name: str, status: int, seconds: float) -> None:
    """Raise `SandboxFailure` if a process was killed by another, and not for its processor time."""
    if status == -signal.SIGKILL and seconds < SECONDS - 0.5:
        raise SandboxFailure(f"the process of the {name} was killed after {seconds:.1f} s, perhaps for lack of memory")


def _tested(program: str, tests: str, *, nursery: Nursery, pipes: list[_Pipe]) -> tuple[bytes | None, int, float]:
    """What the process of the tests reports, None if nothing happens; its exit status and its processor time."""
    to_program, from_program, report = pipes[0].writer, pipes[1].reader, pipes[2].writer
    try:
        child = os.fork()
    except OSError as error:
        raise SandboxFailure(f"the tests cannot be started: {error}") from None
    if child == 0:
        try:
            die_with_parent()
            keep_descriptors(*(pipe.fileno() for pipe in (from_program, to_program, report)))
            confine()
            result = outcome(program, tests, reader=from_program.fileno(), writer=to_program.fileno())
        except BaseException as error:
            result = {"failure": f"{type(error).__name__}: {error}"}
        report.write(json.dumps({key: text[:500] for key, text in result.items()}).encode())
        os._exit(0)
    for pipe in (from_program, to_program, report):
        pipe.close()
    try:
        reported = _await(pipes[2].reader.fileno(), child, nursery)
    finally:
        os.kill(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
    return reported, os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime


def _await(verdict: int, child: int, nursery: Nursery) -> bytes | None:
    """What is written to the pipe until it closes; None once neither the tests nor the program work any more."""
    idle, before = 0, 0.0
    while not select.select([verdict], [], [], TICK)[0]:
        worked = processor_seconds(child) + nursery.ask("seconds")
        idle = idle + 1 if worked < before + _WORKED else 0
        before = worked
        if idle == IDLE_TICKS:
            return None
    return os.read(verdict, 1 << 16)


def checked_nursery(command: list[str] = COMMAND) -> Nursery:
    """Returns a nursery in which programs are confined and right ones pass.

    It is the most isolated that works. Raises `UserError` with the reasons if there is none.
    """
    problems = {}
    for way, full_command in namespaces.ways(command).items():
        try:
            nursery = Nursery(full_command)
        except SandboxFailure as failure:
            problems[way] = str(failure)
            continue
        try:
            problem = why_wrong(PROGRAM, TESTS, nursery)
        except SandboxFailure as failure:
            problem = str(failure)
        if problem is None:
            return nursery
        nursery.close()
        problems[way] = problem
    reasons = "; ".join(f"{way}: {problem}" for way, problem in problems.items())
    raise UserError(
        f"verifier=code: programs cannot be confined on this machine ({reasons}): use a kernel with Landlock "
        "(Linux 5.13) or with user namespaces, or leave out tasks and benchmarks that are verified by running programs"
    )


load_libraries()
gc.freeze()  # the processes of the tests then share the memory of the libraries
_nursery = checked_nursery()
