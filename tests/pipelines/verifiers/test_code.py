"""The sandbox for programs: what passes, and what programs try in order to escape or to cheat."""

import ctypes
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.verifiers import Judge
from tests.pipelines.verifiers.test_judge import rewards

RIGHT = "def f(x):\n    return x + 1\n"
TESTS = "assert f(3) == 4\nassert f(-1) == 0"


def test_a_program_passes_when_its_tests_run_to_the_end() -> None:
    programs = {
        RIGHT: 1,
        "import math, collections\ndef f(x): return int(math.sqrt((x + 1) ** 2))": 1,
        "def f(x):\n    return x": 0,
        "def f(x:": 0,
        "import sys; sys.exit(0)": 0,
        "import os; os._exit(0)": 0,
        "f = lambda x: exit()": 0,
        "": 0,
    }
    assert rewards("code", [(program, TESTS) for program in programs]) == list(programs.values())


ATTACKS = {
    "socket": "import socket; socket.socket()",
    "fork": "import os; os.fork()",
    "process": "import subprocess; subprocess.run(['true'])",
    "exec": "import os; os.execv('/bin/true', ['true'])",
    "thread": "import threading; threading.Thread(target=print).start()",
    "write": "open({file!r}, 'w').write('x')",
    "append": "open({file!r}, 'a').write('x')",
    "remove": "import os; os.unlink({file!r})",
    "rename": "import os; os.rename({file!r}, {file!r} + '2')",
    "folder": "import os; os.mkdir({file!r} + '3')",
    "chmod": "import os; os.chmod({file!r}, 0)",
    "link": "import os; os.symlink('/', {file!r} + '4')",
    "kill": "import os; os.kill(os.getppid(), 9)",
    "memory": "b = bytearray(2 << 30)",
    "session": "import os; os.setsid()",
    "endless output": "while True: print('x' * 10000)",
    "fork bomb": "import os\nwhile True: os.fork()",
    "shell": "import os; assert os.system('true') == 0",
    "memory, bit by bit": "b = []\nwhile True: b.append(bytearray(1 << 20))",
    "endless numbers": "x = 10 ** 10 ** 8",
    "deep recursion": "def g(): return g() + g()\ng()",
    "large file": "open({file!r} + '5', 'wb').write(b'x' * (1 << 30))",
    "temporary file": "import tempfile; tempfile.TemporaryFile()",
    "tree": "import shutil; shutil.rmtree({folder!r})\nimport os; assert not os.path.exists({folder!r})",
    "truncate": "import os; os.truncate({file!r}, 0)",
    "home": "import pathlib; pathlib.Path.home().joinpath('.x').write_text('x')",
    "download": "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')",
    "environment": "import os; assert os.environ.get('SECRET_WORD')",
    "other environment": "assert b'SECRET_WORD' in open('/proc/self/environ', 'rb').read()",
    "kill all": "import os; os.kill(-1, 9)",
    "trace": "import ctypes; assert ctypes.CDLL(None).ptrace(0, 0, 0, 0) == 0",
    "more memory": "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
    "processes": "import multiprocessing as m; p = m.Process(target=print); p.start()",
    "signal": "import signal, os; os.kill(os.getppid(), signal.SIGALRM)",
    "root": "import os; os.chroot('/')",
    "clock": "import time; time.clock_settime(time.CLOCK_REALTIME, 0)",
    "priority": "import os; os.setuid(12345); open({file!r}, 'w')",
}


def test_a_program_can_do_nothing_but_compute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each attack is followed by a right answer: it passes only if the attack succeeded."""
    monkeypatch.setenv("SECRET_WORD", "xyzzy")
    file = tmp_path / "victim"
    file.write_text("whole")
    names = {"file": str(file), "folder": str(tmp_path)}
    programs = [(f"{attack.format(**names)}\n{RIGHT}", TESTS) for attack in ATTACKS.values()]
    passed = dict(zip(ATTACKS, rewards("code", programs, workers=2), strict=True))
    assert passed == dict.fromkeys(ATTACKS, 0.0)
    assert file.read_text() == "whole"
    assert os.listdir(tmp_path) == ["victim"]


CHEATS = {
    "the tests' function": "import builtins; builtins.assertion = lambda *_: None\n",
    "abs, as the tests call it": "import builtins; builtins.abs = lambda x: 0\ndef f(x): return 99\n",
    "abs in the tests' own names": "def abs(x): return 0\ndef f(x): return 99\n",
    "numpy's comparison": "import numpy; numpy.allclose = lambda *a, **k: True\ndef f(x): return 99\n",
    "all and any": "import builtins; builtins.all = builtins.any = lambda x: True\ndef f(x): return 99\n",
    "a module in numpy's place": "import sys, types\nm = types.ModuleType('numpy'); m.allclose = lambda *_: True\n"
    "sys.modules['numpy'] = m\ndef f(x): return 99\n",
    "its own check": "def check(f): pass\n",
    "an early end": "import sys\ndef f(x): sys.exit(0)\n",
    "an end with the word": "import os\ndef f(x): os.write(3, b'0' * 32); os._exit(0)\n",
    "a raised success": "raise SystemExit(0)\n",
}


def test_a_program_cannot_read_the_users_files(tmp_path: Path) -> None:
    if ctypes.CDLL(None).syscall(444, 0, 0, 1) < 0:
        pytest.skip("this kernel has no Landlock")
    secret = tmp_path / "secret"
    secret.write_text("xyzzy")
    reads = [
        f"open({str(secret)!r}).read()",
        f"import os; os.listdir({str(tmp_path)!r})",
        "open('/proc/1/environ', 'rb').read()",
        "import os; open(f'/proc/{os.getppid()}/environ', 'rb').read()",
    ]
    allowed = "import decimal, fractions, statistics, textwrap, zoneinfo"
    assert rewards("code", [(f"{begin}\n{RIGHT}", TESTS) for begin in [*reads, allowed]]) == [0] * len(reads) + [1]


def test_a_program_cannot_cheat_its_tests() -> None:
    """The tests use what HumanEval+ and MBPP+ use: comparisons of arrays, `abs`, `all`, a function named check."""
    tests = (
        "import numpy as np\ndef check(f):\n    assert f(3) == 4 and f(-1) == 0\n    assert abs(f(3) - 4) < 1e-6\n"
        "    assert all(f(i) == i + 1 for i in range(3))\n    assert np.allclose(f(2), 3)\ncheck(f)"
    )
    lenient = [
        "assert abs(f(3) - 4) < 1e-6",
        "import numpy as np\nassert np.allclose(f(3), 4)",
        "assert all([f(3) == 4])",
    ]
    passed = rewards(
        "code", [(program, tests_) for tests_ in (tests, *lenient) for program in (RIGHT, *CHEATS.values())]
    )
    assert passed == ([1] + [0] * len(CHEATS)) * 4


def test_a_program_that_never_ends_is_killed() -> None:
    began = time.monotonic()
    with Judge(1) as judge:
        verdicts = judge.rewards([("code", "while True: pass", TESTS), ("code", RIGHT, TESTS)])
    assert [verdict.reward for verdict in verdicts] == [0, 1]
    assert time.monotonic() - began < 60


REFUSING_KERNEL = """
import ctypes, struct
from pipelines.errors import StageFailure
from pipelines.verifiers import Judge

libc = ctypes.CDLL(None)
# seccomp: prctl(PR_SET_SECCOMP, ...) fails with EPERM, everything else is allowed
lines = [(0x20, 0, 0, 0), (0x15, 0, 3, {prctl}), (0x20, 0, 0, 16), (0x15, 0, 1, 22)]
lines += [(6, 0, 0, 0x50001), (6, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
program = ctypes.create_string_buffer(struct.pack("@HP", len(lines), ctypes.addressof(code)))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0
try:
    with Judge(1) as judge:
        print(judge.rewards([("code", "x = 1", "assert x == 1")]))
except StageFailure as failure:
    print(failure)
"""


def test_a_sandbox_that_the_kernel_refuses_fails_the_stage() -> None:
    """The kernel refuses every filter: without the test at loading, each program would be wrong."""
    script = REFUSING_KERNEL.format(prctl={"x86_64": 157, "aarch64": 167}[platform.machine()])
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert "code:passes cannot be loaded: ImportError: programs cannot be confined on this machine" in result.stdout
    assert "the kernel refuses the seccomp filter" in result.stdout


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("code._filter_system_calls = lambda: None", "a program can start a process"),
        ("code.MEMORY = 1 << 20", "died|MemoryError|right program does not pass"),
        ("code._open_socket = lambda: None", "a program can open a socket"),
    ],
)
def test_a_sandbox_with_a_hole_is_noticed(change: str, reason: str) -> None:
    script = f"from pipelines.verifiers import code\n{change}\ncode.check_sandbox()"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert re.search(f"ImportError: programs cannot be confined on this machine: .*({reason})", result.stderr)
