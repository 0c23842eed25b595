"""What a confined program may do, read from the filter by an interpreter of BPF of our own, and its limits."""

import json
import os
import resource
import struct
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from pipelines.verifiers.confinement import confine, drop_capabilities, filter_program
from tests.forked import forked

ALLOW, DENY, KILL = 0x7FFF0000, 0x00050001, 0x80000000
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOWED = {
    # Numbers of the kernel's tables. Whoever adds one says here which program needs it, and what it can do with it.
    "x86_64": {
        *(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 19, 20, 21, 23, 24, 25, 28, 32, 35, 36, 37, 38),
        *(39, 60, 63, 72, 79, 89, 96, 97, 98, 99, 100, 102, 104, 107, 108, 110, 131, 186, 201, 202, 204, 217, 219),
        *(228, 229, 230, 231, 257, 262, 267, 269, 270, 271, 302, 318, 332, 439),
    },
    "aarch64": {
        *(17, 23, 25, 29, 48, 56, 57, 61, 62, 63, 64, 65, 66, 67, 72, 73, 78, 79, 80, 93, 94, 98, 101, 102, 103, 113),
        *(114, 115, 123, 124, 128, 132, 134, 135, 139, 153, 160, 163, 165, 169, 172, 173, 174, 175, 176, 177, 178, 179),
        *(214, 215, 216, 222, 226, 233, 261, 278, 291, 439),
    },
}


def answer(machine: str, number: int, *arguments: int, architecture: int | None = None) -> int:
    """What the filter answers to a system call: a plain interpreter of its four instructions."""
    arguments += (0,) * (6 - len(arguments))
    data = struct.pack("=iIQ6Q", number, ARCHITECTURE[machine] if architecture is None else architecture, 0, *arguments)
    program = list(struct.iter_unpack("=HBBI", filter_program(machine)))
    position, value = 0, 0
    while True:
        code, if_true, if_false, constant = program[position]
        position += 1
        if code == 0x20:
            (value,) = struct.unpack_from("=I", data, constant)
        elif code == 0x15:
            position += if_true if value == constant else if_false
        elif code == 0x45:
            position += if_true if value & constant else if_false
        else:
            assert code == 0x06
            return int(constant)


@pytest.mark.parametrize("machine", ARCHITECTURE)
def test_no_system_call_is_allowed_but_those_of_the_list(machine: str) -> None:
    # With 0x5401 as the second argument, which is what `ioctl` may ask; `fcntl` with 1.
    second = {calls(machine)["ioctl"]: 0x5401, calls(machine)["fcntl"]: 1}
    numbers = {number for number in range(1024) if answer(machine, number, 0, second.get(number, 0)) == ALLOW}
    assert numbers == ALLOWED[machine]
    assert {answer(machine, number) for number in range(1024)} == {ALLOW, DENY}
    # A number with the bit of the x32 interface, and any call of another architecture.
    assert answer(machine, 0x40000000) == DENY
    assert answer(machine, 63, architecture=0x40000003) == KILL


def calls(machine: str) -> dict[str, int]:
    """The numbers of the calls whose arguments count."""
    names = {
        "openat": (257, 56), "fcntl": (72, 25), "ioctl": (16, 29), "prlimit64": (302, 261),
        "sched_getaffinity": (204, 123),
    }  # fmt: skip
    return {name: numbers[machine == "aarch64"] for name, numbers in names.items()}


@pytest.mark.parametrize("machine", ARCHITECTURE)
@pytest.mark.parametrize(
    ("name", "arguments", "allowed"),
    [
        ("openat", (0xFFFFFF9C, 1, os.O_RDONLY | os.O_CLOEXEC), True),
        ("openat", (0, 1, os.O_WRONLY), False),
        ("openat", (0, 1, os.O_RDWR), False),
        ("openat", (0, 1, os.O_CREAT), False),
        ("openat", (0, 1, os.O_TRUNC), False),
        ("openat", (0, 1, os.O_APPEND), False),
        ("openat", (0, 1, os.O_PATH), False),
        ("fcntl", (1, 1), True),
        ("fcntl", (1, 3), True),
        ("fcntl", (1, 4), False),  # F_SETFL
        ("fcntl", (1, 6), False),  # F_SETLK
        ("fcntl", (1, 8), False),  # F_SETOWN, to whom signals go
        ("ioctl", (1, 0x5401), True),
        ("ioctl", (1, 0x5412), False),  # TIOCSTI, which types into a terminal
        ("ioctl", (1, 0x541B), False),  # FIONREAD
        ("prlimit64", (0, 7, 0), True),
        ("prlimit64", (1, 7, 0), False),  # of another process
        ("prlimit64", (0, 7, 1), False),  # a new limit, at an address below and above 2^32
        ("prlimit64", (0, 7, 1 << 32), False),
        ("sched_getaffinity", (0,), True),
        ("sched_getaffinity", (1,), False),
    ],
)
def test_some_calls_are_allowed_only_with_harmless_arguments(
    machine: str, name: str, arguments: tuple[int, ...], allowed: bool
) -> None:
    assert (answer(machine, calls(machine)[name], *arguments) == ALLOW) == allowed


def test_limits_are_those_of_the_documents_and_the_environment_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 s of processor, 512 MiB, no file, no process: read back by a confined process, before its filter."""
    monkeypatch.setattr("pipelines.verifiers.confinement.filter_system_calls", lambda: None)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        found: dict[str, object] = {}
        try:
            # Files that the other tests of this process left open would be more than the limit allows.
            os.closerange(3, writer)
            os.closerange(writer + 1, 4096)
            confine()
            for name in ("CPU", "AS", "FSIZE", "NOFILE", "NPROC", "CORE"):
                found[name] = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))
            found["environment"] = dict(os.environ)
            found["folder"] = os.getcwd()
        except BaseException as error:
            found["error"] = repr(error)
        finally:
            os.write(writer, json.dumps(found).encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        found = json.load(pipe)
    os.waitpid(child, 0)
    assert found == {
        "CPU": [4, 4],
        "AS": [536_870_912] * 2,
        "FSIZE": [0, 0],
        "NOFILE": [16, 16],
        "NPROC": [0, 0],
        "CORE": [0, 0],
        "environment": {},
        "folder": "/",
    }


def capabilities() -> dict[str, str]:
    """The sets of capabilities of a process that has given them up, by the kernel."""
    drop_capabilities()
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0]: words[1] for words in lines if words[0].startswith(("Cap", "NoNewPrivs"))}


def test_no_capability_is_left_and_none_can_be_regained() -> None:
    with ProcessPoolExecutor(1, forked) as pool:
        found = pool.submit(capabilities).result()
    assert found.pop("NoNewPrivs:") == "1"
    if os.geteuid():  # only root can empty the set of what a program with privileges could get
        del found["CapBnd:"]
    assert len(found) >= 4
    assert {int(bits, 16) for bits in found.values()} == {0}


@pytest.mark.parametrize("machine", ARCHITECTURE)
def test_no_request_is_allowed_but_those_of_the_list(machine: str) -> None:
    numbers = calls(machine)
    requests = {
        "fcntl": ([*range(64), *range(1024, 1064)], {0, 1, 2, 3, 1030}),
        "ioctl": ([*range(0x5400, 0x5480), *range(0x8900, 0x8910)], {0x5401, 0x5413, 0x5450, 0x5451}),
    }
    for name, (asked, allowed) in requests.items():
        assert {value for value in asked if answer(machine, numbers[name], 0, value) == ALLOW} == allowed
    # O_NOCTTY, O_NONBLOCK, O_LARGEFILE, O_DIRECTORY, O_NOFOLLOW and O_CLOEXEC, by their numbers on x86-64.
    harmless = {8, 11, 15, 16, 17, 19}
    assert {bit for bit in range(32) if answer(machine, numbers["openat"], 0, 1, 1 << bit) == ALLOW} == harmless
    if machine == "x86_64":  # the other has no `open`
        assert {bit for bit in range(32) if answer(machine, 2, 1, 1 << bit) == ALLOW} == harmless
