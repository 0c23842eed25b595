"""The sandbox closes in every way that it can be made, refuses where it cannot, and its own failures are counted."""

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CALLS = {
    "unshare": {"x86_64": 272, "aarch64": 97},
    "landlock": {"x86_64": 444, "aarch64": 444},
    "mount": {"x86_64": 165, "aarch64": 40},
    "prctl": {"x86_64": 157, "aarch64": 167},
    "pivot_root": {"x86_64": 155, "aarch64": 41},
}
DENY = """
import ctypes, struct
def deny(*numbers):
    \"\"\"The kernel refuses these system calls with EPERM.\"\"\"
    libc = ctypes.CDLL(None)
    lines = [(0x20, 0, 0, 0)]
    for number in numbers:
        lines += [(0x15, 0, 1, number), (6, 0, 0, 0x50001)]
    lines.append((6, 0, 0, 0x7FFF0000))
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(lines), ctypes.addressof(code)))
    assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0
"""


def output(script: str, *, prefix: tuple[str, ...] = ()) -> str:
    """What a script prints in a process of its own, which ends with 0."""
    result = subprocess.run([*prefix, sys.executable, "-c", script], capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    return result.stdout


def denying(*names: str) -> str:
    return f"{DENY}\ndeny({', '.join(str(CALLS[name][platform.machine()]) for name in names)})\n"


EVERY_WAY = """
from pipelines.verifiers import code, namespaces
from pipelines.verifiers.sandbox_check import PROGRAM, TESTS
for way, command in namespaces.ways(code.COMMAND).items():
    try:
        nursery = code.Nursery(command)
        print(way, "|", code.why_wrong(PROGRAM, TESTS, nursery) or "closed")
        nursery.close()
    except code.SandboxFailure as failure:
        print(way, "|", failure)
print("used", "|", code._nursery.command[-1])
"""


def ways(*denied: str) -> dict[str, str]:
    """The outcome of each way to start a nursery where the kernel refuses some calls, and which one is used."""
    lines = output(denying(*denied) + EVERY_WAY).strip().split("\n")
    outcomes = dict(line.split(" | ", 1) for line in lines)
    assert ("bwrap" in outcomes) == (shutil.which("bwrap") is not None)
    return outcomes


def test_each_way_closes() -> None:
    """Namespaces may be forbidden on the machine of the tests; programs are then confined without them."""
    outcomes = ways()
    used = outcomes.pop("used")
    assert outcomes["none"] == "closed"
    assert outcomes[used] == "closed"
    assert set(outcomes.values()) == {"closed"} or any("Operation not permitted" in text for text in outcomes.values())


def test_without_landlock_only_an_empty_root_closes() -> None:
    outcomes = ways("landlock") if ways()["namespaces"] == "closed" else pytest.skip("no namespaces here")
    assert "read the users of the machine" in outcomes["none"]
    assert "read the users of the machine" in outcomes["no root"]
    assert outcomes["namespaces"] == "closed"
    assert outcomes.get("bwrap", "closed") == "closed"
    assert outcomes["used"] in ("bwrap", "namespaces")


@pytest.mark.ci_only
@pytest.mark.parametrize(
    ("denied", "used"), [("unshare", {"none"}), ("mount", {"no root", "none"}), ("pivot_root", {"no root", "none"})]
)
def test_the_next_way_is_used_where_one_is_refused(denied: str, used: set[str]) -> None:
    outcomes = ways(denied)
    assert outcomes["used"] in used
    assert outcomes[outcomes["used"]] == "closed"


REFUSED = """
from pipelines.errors import UserError
from pipelines.verifiers import Judge
try:
    with Judge(1) as judge:
        print(judge.rewards([("code", "x = 1", "assert x == 1")]))
except UserError as refusal:
    print(refusal)
"""


@pytest.mark.parametrize(
    ("denied", "reason"),
    [
        (("prctl",), "no_new_privs: Operation not permitted"),
        (("unshare", "landlock"), "a program can read the users of the machine"),
    ],
)
def test_a_machine_that_cannot_confine_programs_is_refused(denied: tuple[str, ...], reason: str) -> None:
    """One sentence that names the verifier, the reason and the way out, instead of a reward of 0 for each program."""
    refusal = output(denying(*denied) + REFUSED)
    assert refusal.startswith("verifier=code: programs cannot be confined on this machine (")
    assert reason in refusal
    assert "use a kernel with Landlock" in refusal
    assert refusal.count("\n") == 1


@pytest.mark.parametrize(
    ("hole", "reason"),
    [
        ("confinement.filter_system_calls = lambda: None", "a program can"),
        ("confinement.MEMORY = 1 << 20", "MemoryError|killed|ended|closed|allocate"),
        (
            "nursery.enter = lambda way: None\\nconfinement.restrict_reading = lambda: None",
            "a program can read the users of the machine",
        ),
        ("nursery.serve = lambda *pipes: None", "closed"),
    ],
)
def test_a_sandbox_with_a_hole_is_noticed(hole: str, reason: str) -> None:
    """The process that programs are forked from is started with a hole, and without bubblewrap."""
    nursery = f"from pipelines.verifiers import confinement, nursery\\n{hole}\\nnursery.main()"
    script = (
        "import os, sys\nfrom pipelines.errors import UserError\nfrom pipelines.verifiers import code\n"
        f"os.environ['PATH'] = ''\ntry:\n    code.checked_nursery([sys.executable, '-P', '-c', '{nursery}'])\n"
        "except UserError as refusal:\n    print(refusal)\n"
    )
    refusal = output(script)
    assert "verifier=code: programs cannot be confined on this machine" in refusal
    assert any(text in refusal for text in reason.split("|")), refusal


FAILING = """
import errno, os, signal, threading, time
from pipelines.verifiers import code

def failure(program="x = 1", tests="assert x == 1"):
    try:
        return str(code.passes(program, tests))
    except code.SandboxFailure as failure:
        return f"failure: {failure}"

def refuse(*arguments):
    raise OSError(errno.EAGAIN, "no more processes")
"""


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("os.fork = refuse", "failure: the tests cannot be started"),
        ("os.pipe = refuse", "failure: no pipe can be opened"),
        ("code.confine = refuse", "failure: BlockingIOError"),
        ("code._nursery._process.kill()", "failure: the process that programs are forked from"),
        ("code.Nursery.__init__ = refuse; code._nursery.broken = True", "no more processes"),
    ],
)
def test_a_fault_of_the_machine_is_a_failure_and_the_next_program_is_judged(fault: str, expected: str) -> None:
    script = f"""{FAILING}
kept = os.fork, os.pipe, code.confine, code.Nursery.__init__
{fault}
try:
    print(failure())
except OSError as error:
    print(error)
os.fork, os.pipe, code.confine, code.Nursery.__init__ = kept
print(failure(), failure("x = 2"), len(os.listdir("/proc/self/fd")))
print(failure(), failure("x = 2"), len(os.listdir("/proc/self/fd")))
"""
    first, *others = output(script).strip().split("\n")
    assert expected in first
    assert [line.split()[:2] for line in others] == [["1.0", "0.0"]] * 2
    assert others[0] == others[1]  # no descriptor is left open


def test_no_room_for_the_program_is_a_failure() -> None:
    """The process that programs are forked from cannot fork."""
    nursery = (
        "import os\\nfrom pipelines.verifiers import nursery\\ndef refuse(): raise BlockingIOError(11, 'no room')\\n"
    )
    nursery += "os.register_at_fork(before=refuse)\\nnursery.os.fork = refuse\\nnursery.main()"
    script = f"""{FAILING}
import sys
code._nursery.close()
code._nursery = code.Nursery([sys.executable, "-P", "-c", "{nursery}", "none"])
print(failure())
"""
    assert output(script).strip() == "failure: [Errno 11] no room"


@pytest.mark.parametrize("before", ["", "import os; os.closerange(3, 99)"])
def test_a_program_that_something_else_kills_is_a_failure(before: str) -> None:
    """As the kernel does when memory runs out. Programs are children of the process that they are forked from.

    A dying process closes its pipes some time before it can be seen to have ended; closing them makes that time long.
    """
    script = f"""{FAILING}
code._nursery.close()
code._nursery = code.Nursery([*code.COMMAND, "none"])
def kill():
    pid, children = code._nursery._process.pid, []
    while not children:
        children = open(f"/proc/{{pid}}/task/{{pid}}/children").read().split()
    child = int(children[0])
    while time.clock_gettime(~child << 3 | 2) < 0.2:  # its processor time: the program runs
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
threading.Thread(target=kill).start()
print(failure("{before}\\nwhile True: pass"))
print(failure())
"""
    first, second = output(script).strip().split("\n")
    assert first.startswith("failure: the process of the program was killed after 0")
    assert second == "1.0"


def test_a_right_program_passes_where_nothing_can_be_written(tmp_path: Path) -> None:
    """Every file system read-only, and a full one for temporary files."""
    read_only = (
        f"set -e; mount -o remount,bind,ro /; mount -t tmpfs -o size=4k none {tmp_path}; "
        f'cat /dev/zero >{tmp_path}/full 2>/dev/null || true; export TMPDIR={tmp_path}; exec "$@"'
    )
    prefix = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", read_only, "sh")
    if shutil.which("unshare") is None or subprocess.run([*prefix[:4], "true"]).returncode:
        pytest.skip("no namespaces here")
    script = f"""{FAILING}
for path in ("{tmp_path}/x", "/x"):
    try:
        with open(path, "w") as file:
            file.write("x")
    except OSError as error:
        print(errno.errorcode[error.errno])
print(failure())
"""
    assert output(script, prefix=prefix).split() == ["ENOSPC", "EROFS", "1.0"]


WAITED = """
import os
from types import SimpleNamespace
from pipelines.verifiers import code
code.TICK = 0.0
nursery = SimpleNamespace(ask=lambda request: 0.0)

def waited(seconds):
    reader, writer = os.pipe()
    looks = iter(seconds)

    def look(child):
        if (worked := next(looks, None)) is None:
            os.write(writer, b"verdict")
        return 1e9 if worked is None else worked

    code.processor_seconds = look
    return code._await(reader, 0, nursery)

print(waited([look // 7 for look in range(60)]), waited([1.0] * 8), waited([1.0] * 9))
"""


def test_a_program_does_nothing_only_if_it_does_nothing_for_eight_looks_in_a_row() -> None:
    """One that works at every seventh look is waited for, as is one that does nothing for seven after it has worked."""
    assert output(WAITED).split() == ["b'verdict'", "b'verdict'", "None"]
