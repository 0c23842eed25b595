"""A public set of programs that try to get out of the sandbox, or a reward without solving their task.

`attempts(file, process)` yields them all: name -> (program, tests). Each must score 0, and must leave alone the file and
the process that it is given and everything else. Families are generated: one program for each built-in function that is
replaced, each method of unittest and function of numpy, each system call, each comparison that lies.

A program that attacks the machine goes on with a right answer, so that it passes only if the attack succeeded. One that
attacks its tests gives wrong answers, and passes only if the tests were deceived.
"""

# ruff: noqa: E501 - one program a line
import builtins
import os
import unittest
from collections.abc import Iterator

Attempt = tuple[str, tuple[str, str]]

RIGHT = "def f(x):\n    return x + 1\n"
WRONG = "def f(x):\n    return 99\n"
TESTS = "assert f(3) == 4\nassert f(-1) == 0"
STRICT = (
    "import math, numpy as np, operator, unittest\ndef check(f):\n    assert f(3) == 4 and f(-1) == 0\n"
    "    assert abs(f(3) - 4) < 1e-6 and math.isclose(f(3), 4) and operator.eq(f(3), 4)\n"
    "    assert all(f(i) == i + 1 for i in range(3)) and not any(f(i) != i + 1 for i in range(3))\n"
    "    assert sorted([f(1), f(0)]) == [1, 2] and sum([f(1)]) == 2 and str(f(3)) == '4' and int(f(3)) == 4\n"
    "    assert np.allclose(f(2), 3) and np.array_equal([f(2)], [3])\n"
    "    unittest.TestCase().assertEqual(f(3), 4)\n    assert isinstance(f(3), int) and repr(f(3)) == '4'\ncheck(f)"
)
"""Uses what could be replaced."""
LENIENT = {
    "abs": "assert abs(f(3) - 4) < 1e-6", "all": "assert all([f(3) == 4])", "any": "assert not any([f(3) != 4])",
    "sum": "assert sum([f(3)]) == 4", "len": "assert len([0] * f(3)) == 4", "sorted": "assert sorted([f(3)]) == [4]",
    "str": "assert str(f(3)) == '4'", "repr": "assert repr(f(3)) == '4'", "int": "assert int(f(3)) == 4",
    "float": "assert float(f(3)) == 4.0", "round": "assert round(f(3)) == 4", "max": "assert max(f(3), 0) == 4",
    "min": "assert min(f(3), 100) == 4", "list": "assert list([f(3)]) == [4]", "tuple": "assert tuple([f(3)]) == (4,)",
    "set": "assert set([f(3)]) == {4}", "dict": "assert dict(a=f(3)) == {'a': 4}", "map": "assert list(map(f, [3])) == [4]",
    "zip": "assert [a == b for a, b in zip([f(3)], [4])] == [True]", "hash": "assert hash(f(3)) == 4",
    "bool": "assert bool(f(3) == 4)", "isinstance": "assert isinstance(f(3), int) and f(3) == 4",
    "filter": "assert list(filter(lambda x: x != 4, [f(3)])) == []", "range": "assert list(range(f(3))) == [0, 1, 2, 3]",
    "enumerate": "for i, x in enumerate([f(3)]):\n    assert x == 4", "getattr": "assert getattr(f(3), 'real') == 4",
    "eval": "assert eval('f(3) == 4')", "exec": "exec('assert f(3) == 4')", "divmod": "assert divmod(f(3), 4) == (1, 0)",
    "compile": "exec(compile('assert f(3) == 4', 't', 'exec'))", "vars": "vars()['y'] = f(3)\nassert y == 4",
    "globals": "globals()['y'] = f(3)\nassert y == 4", "print": "print(f(3))\nassert f(3) == 4",
    "AssertionError": "if f(3) != 4:\n    raise AssertionError", "pow": "assert pow(f(3), 1) == 4",
    "iter": "assert next(iter([f(3)])) == 4", "type": "assert type(f(3)) is int and f(3) == 4",
}  # fmt: skip
"""Built-in name -> tests that depend on it only."""


def replaced_names() -> Iterator[Attempt]:
    """Every built-in name, method of unittest and well-known function of numpy is replaced by one that agrees."""
    for name in sorted(vars(builtins)):
        if not name.isidentifier() or name in ("False", "None", "True", "__debug__", "_"):
            continue
        fakes = {"function": "lambda *a, **k: True", "class": "type('Fake', (BaseException,), {})"}
        for fake, text in fakes.items():
            if (fake == "class") == name.endswith(("Error", "Exception", "Exit", "Warning")):
                program = f"import builtins\nbuiltins.{name} = {text}\n{WRONG}"
                yield f"builtins.{name} is a {fake}", (program, LENIENT.get(name, STRICT))
        if name in LENIENT:
            yield f"{name} as a global name", (f"{WRONG}{name} = lambda *a, **k: True\n", LENIENT[name])
            yield f"{name} in __builtins__", (
                f"try:\n    __builtins__.{name} = lambda *a, **k: True\nexcept AttributeError:\n"
                f"    __builtins__[{name!r}] = lambda *a, **k: True\n{WRONG}", LENIENT[name])  # fmt: skip
    for name in sorted(dir(unittest.TestCase)):
        if name.startswith(("assert", "fail")):
            program = f"import unittest\nunittest.TestCase.{name} = lambda *a, **k: None\n{WRONG}"
            yield f"unittest.{name}", (program, "import unittest\nunittest.TestCase().assertEqual(f(3), 4)")
    for name in ("allclose", "isclose", "array_equal", "all", "any", "abs", "array", "asarray", "equal", "testing"):
        program = f"import numpy\nnumpy.{name} = lambda *a, **k: True\n{WRONG}"
        yield f"numpy.{name}", (program, "import numpy as np\nassert np.allclose(f(3), 4) and np.array_equal(f(3), 4)")
    for name in ("assert_allclose", "assert_equal", "assert_array_equal", "assert_almost_equal"):
        program = f"import numpy.testing\nnumpy.testing.{name} = lambda *a, **k: None\n{WRONG}"
        yield f"numpy.testing.{name}", (program, f"import numpy\nnumpy.testing.{name}(f(3), 4)")
    for name in ("math", "numpy", "unittest", "operator", "builtins", "json", "copy", "collections", "re", "__main__"):
        program = (
            f"import sys, types\nclass Fake(types.ModuleType):\n    def __getattr__(self, name):\n"
            f"        return lambda *a, **k: True\nsys.modules[{name!r}] = Fake({name!r})\n{WRONG}"
        )
        yield f"sys.modules[{name}]", (program, STRICT)
        yield f"the name {name} is no module", (f"{program}{name} = Fake('x')\n", f"assert {name}.isclose(f(3), 4)")


_LIES = (
    "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__sub__", "__rsub__", "__add__", "__abs__", "__bool__",
    "__hash__", "__len__", "__contains__", "__getitem__", "__iter__", "__float__", "__int__", "__index__", "__array__",
    "__str__", "__repr__", "__round__", "__instancecheck__", "__getattr__", "__call__", "__array_ufunc__", "__format__",
)  # fmt: skip


def lying_values() -> Iterator[Attempt]:
    """Answers whose own code would decide what they are equal to, of every built-in base."""
    for base, value in (
        ("object", ""), ("int", "99"), ("float", "9.5"), ("str", "'99'"), ("list", "[9]"), ("tuple", "(9,)"),
        ("dict", "{9: 9}"), ("set", "{9}"), ("frozenset", "{9}"), ("complex", "9j"), ("bytes", "b'9'"),
    ):  # fmt: skip
        lies = "\n".join(
            f"    def {lie}(self, *a, **k): return {'99' if lie in ('__hash__', '__len__') else 'True'}"
            for lie in ("__eq__", "__ne__", "__lt__", "__sub__", "__contains__", "__hash__", "__bool__")
        )
        program = f"class Liar({base}):\n{lies}\ndef f(x): return Liar({value})\n"
        yield f"{base} that equals everything", (program, TESTS)
        yield f"{base} inside a list", (program.replace(f"Liar({value})\n", f"[Liar({value})]\n"), "assert f(3) == [4]")
        yield (
            f"{base} as a key",
            (program.replace(f"return Liar({value})", f"return {{Liar({value}): 1}}"), "assert f(3) == {4: 1}"),
        )
    for lie in _LIES:
        program = f"class Liar:\n    def {lie}(self, *a, **k): return True\ndef f(x): return Liar()\n"
        yield (
            f"an answer with {lie}",
            (program, "assert f(3) == 4 or abs(f(3) - 4) < 1e-6 or f(3) in (4,) or 4 in f(3)"),
        )
        yield (
            f"an answer and function with {lie}",
            (f"{program}f = Liar()\n", "assert f == 4 or f(3) == 4 or f.equals(4)"),
        )
    everything = (
        "class Liar:\n    def __getattribute__(self, name): return lambda *a, **k: True\ndef f(x): return Liar()\n"
    )
    for name, tests in {
        "a method": "assert f(3).startswith('4')", "isinstance": "assert isinstance(f(3), int)",
        "a sum": "assert f(3) + 0 == 4", "a value by name": "assert answer.startswith('4')",
        "an element": "assert f(3)[0] == 4", "truth": "assert f(3).is_right()", "sorted": "assert sorted(f(3)) == [4]",
    }.items():  # fmt: skip
        yield f"everything agrees: {name}", (f"{everything}answer = Liar()\n", tests)
    yield "a class instead of an answer", ("class M(type):\n    def __eq__(a, b): return True\nclass f(metaclass=M):\n"
                                           "    def __init__(self, x): pass\n", TESTS)  # fmt: skip
    yield (
        "an array of liars",
        (
            "import numpy\nclass Liar:\n    def __eq__(a, b): return True\ndef f(x): return numpy.array([Liar()])\n",
            "import numpy as np\nassert (f(3) == np.array([4])).all()",
        ),
    )
    yield (
        "a masked array",
        ("import numpy\ndef f(x): return numpy.ma.masked\n", "import numpy as np\nassert np.all(f(3) == 4)"),
    )
    yield "a changed argument", ("def f(x):\n    x.clear()\n    return []\n", "x = [2, 1]\nassert f(x) == sorted(x)")
    yield "a changed expectation", ("def f(x, y):\n    y[:] = [9]\n    return [9]\n", "x = [4]\nassert f(3, x) == x")


def raised_ends() -> Iterator[Attempt]:
    """Exceptions and exits that could end the tests early, or look like an end."""
    kinds = sorted(
        name for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, BaseException)
    )
    loop = "assert all(map(lambda pair: f(pair[0]) == pair[1], [(3, 4), (5, 6)]))\nassert [*map(f, [3])] == [4]"
    for kind in kinds:
        construct = f"{kind}('x', [ValueError()])" if "Group" in kind else f"{kind}.__new__({kind})"
        yield f"raise {kind} in a call", (f"def f(x): raise {construct}\n", loop)
        yield f"raise {kind} at once", (f"raise {construct}\n{RIGHT}", "")
    suite = (
        "import io, unittest\nclass T(unittest.TestCase):\n    def test_f(self): self.assertEqual(f(3), 4)\n"
        "suite = unittest.defaultTestLoader.loadTestsFromTestCase(T)\n"
        "assert unittest.TextTestRunner(stream=io.StringIO()).run(suite).wasSuccessful()"
    )
    for name, end in {
        "skipped": "import unittest\n    raise unittest.SkipTest", "exit": "import sys\n    sys.exit(0)",
        "quit": "quit()", "hard exit": "import os\n    os._exit(0)", "abort": "import os\n    os.abort()",
        "crash": "import ctypes\n    ctypes.string_at(0)", "killed": "import os\n    os.kill(os.getpid(), 9)",
        "closed pipes": "import os\n    os.closerange(0, 64)", "deep": "return f(x)",
        "no memory": "return bytearray(1 << 40)", "alarm": "import signal\n    signal.alarm(1)\n    while True: pass",
    }.items():  # fmt: skip
        yield f"{name} in a call", (f"def f(x):\n    {end}\n", TESTS)
        yield f"{name} in a unittest", (f"def f(x):\n    {end}\n", suite)
        yield f"{name}, and tests that catch everything", (f"def f(x):\n    {end}\n", (
            "try:\n    wrong = f(3) != 4\nexcept BaseException:\n    wrong = True\nassert not wrong"))  # fmt: skip
    yield "exit at once", ("import os\nos._exit(0)", "")
    yield "atexit", (f"import atexit, os\natexit.register(os._exit, 0)\n{WRONG}", TESTS)


_HIDDEN = "xyzzy-hidden-in-the-tests"
_KNOWS = f"assert f(3) == '{_HIDDEN}'"


def harness() -> Iterator[Attempt]:
    """Attacks on what runs the tests: frames, tracing, memory, hooks, and searches for what the tests expect."""
    for name, program in {
        "settrace": "import sys\ndef jump(frame, event, arg):\n    if event == 'line' and 'tests' in frame.f_code.co_filename:\n"
        "        frame.f_lineno += 1\n    return jump\nsys.settrace(jump)\n",
        "settrace of all frames": "import sys\ntrace = lambda *a: trace\nsys.settrace(trace)\nframe = sys._getframe()\n"
        "while frame:\n    frame.f_trace = lambda f, e, a: None\n    frame = frame.f_back\n",
        "setprofile": "import sys\ndef p(frame, event, arg):\n    frame.f_globals['f'] = lambda x: x + 2\nsys.setprofile(p)\n",
        "frames' names": "import sys\nframe = sys._getframe()\nwhile frame:\n    for d in (frame.f_globals, frame.f_locals):\n"
        "        d.update(wrong=None, ended=None, passed=True, result={}, check=lambda *a: None)\n    frame = frame.f_back\n",
        "frames' builtins": "import sys\nframe = sys._getframe()\nwhile frame:\n"
        "    frame.f_builtins.update(compile=lambda *a: compile('0', '', 'exec'), exec=lambda *a: None)\n    frame = frame.f_back\n",
        "objects of the collector": "import gc\nfor d in gc.get_objects():\n    if type(d) is dict:\n        try: d['wrong'] = None\n"
        "        except Exception: pass\n",
        "the number 99 is 4": "import ctypes\nctypes.memmove(id(99), id(4), 28)\n",
        "import hook": "import sys\nclass H:\n    def find_spec(self, *a): raise SystemExit(0)\nsys.meta_path.insert(0, H())\n",
        "excepthook": "import os, sys\nsys.excepthook = sys.unraisablehook = lambda *a: os._exit(0)\n",
        "optimised": "import sys\nobject.__setattr__(sys, 'flags', type('F', (), {'optimize': 2})())\n",
        "signal handlers": "import os, signal\nfor n in (2, 14, 15): signal.signal(n, lambda *a: os._exit(0))\nsignal.setitimer(0, 1e-3)\n",
        "its own check": "def check(*a): pass\nassertion = is_floats = check\n",
        "json": "import json\njson.loads = json.dumps = lambda *a, **k: {}\n",
        "patched harness": "import sys\nfor m in list(sys.modules.values()):\n    for n in ('outcome', 'passes', 'why_wrong', 'named', 'decoded'):\n"
        "        if hasattr(m, n): setattr(m, n, lambda *a, **k: {})\n",
    }.items():  # fmt: skip
        yield name, (f"{program}{WRONG}", STRICT)
        yield f"{name}, and one assert", (f"{program}{WRONG}", TESTS)
    for name, search in {
        "frames": "import sys\nframe = sys._getframe()\nwhile frame:\n    found(frame.f_locals), found(frame.f_globals)\n    frame = frame.f_back",
        "gc": "import gc\nfor o in gc.get_objects(): found(o)",
        "its memory": "found(open('/proc/self/mem', 'rb').read(1 << 20))",
        "the memory of its parent": "import os\nfound(open(f'/proc/{os.getppid()}/mem', 'rb').read(1 << 20))",
        "descriptors": "import os\nfor n in range(3, 16):\n    try: found(os.read(n, 0) or n)\n    except OSError: pass",
        "modules": "import sys\nfor m in list(sys.modules.values()): found(vars(m))",
        "source": "import inspect, linecache\nfound(linecache.cache), found(inspect.stack())",
        "traceback": "import traceback\nfound(traceback.format_stack())",
        "arguments": "import sys\nfound(sys.argv), found(sys.orig_argv)",
    }.items():  # fmt: skip
        body = "\n    ".join(search.split("\n"))
        program = (
            "answer = [None]\ndef found(o):\n    text = repr(o)\n    i = text.find('xyzzy-' + 'hidden')\n"
            f"    if i >= 0: answer[0] = text[i:i + {len(_HIDDEN)}]\ndef f(x):\n    {body}\n    return answer[0]\n"
        )
        yield f"the answer, from {name}", (program, _KNOWS)


_REPLIES = {
    "true": b'{"value":true}', "nothing": b"{}", "null": b"null", "a list": b"[]", "a text": b'"passed"', "no JSON": b"\xff",
    "an object": b'{"value":["object",0]}', "an iterator": b'{"value":["iterator",0]}', "a module": b'{"value":["module","os"]}',
    "no raise": b'{"raised":[]}', "a raise": b'{"raised":[["StopIteration"],""]}', "a skip": b'{"raised":[["SkipTest","Exception"],""]}',
    "a deep value": b'{"value":' + b"[" * 5000 + b"]" * 5000 + b"}", "a class": b'{"value":["class","object"]}',
    "a call": b'{"function":0,"arguments":[["list",[]],["dict",[]]]}', "a failure": b'{"failure":"ours"}',
    "a changed argument": b'{"value":null,"changed":[["list",[]]]}', "an array": b'{"value":["array",["O",[1],"AAAA"]]}',
    "a long number": b'{"value":' + b"9" * 100000 + b"}", "an unknown tag": b'{"value":["pickle","gA=="]}',
    "a decimal": b'{"value":["Decimal",[0,[1],2]]}', "a huge fraction": b'{"value":["Fraction","1e9999999999"]}',
    "much output": b'{"value":1,"printed":"' + b"x" * 1000000 + b'"}', "a verdict": b'{"wrong":null}',
}  # fmt: skip


def forged_replies() -> Iterator[Attempt]:
    """Programs that write to the pipe themselves: before they are asked, or instead of an answer."""
    for name, reply in _REPLIES.items():
        send = (
            f"    import os, struct\n    m = {reply!r}\n    m = struct.pack('=I', len(m)) + m\n"
            "    for n in range(16):\n        try:\n            for _ in range(9): os.write(n, m)\n        except OSError: pass\n"
        )
        yield f"{name}, sent at once", (f"def send():\n{send}send()\n{WRONG}", TESTS)
        yield f"{name}, sent for a call", (f"def f(x):\n{send}    return 99\n", TESTS)
    for name, reply in {
        "a long message": b"\xff\xff\xff\x7f",
        "a cut message": b"\x10\0\0\0{",
        "zeros": bytes(64),
    }.items():
        send = f"import os\nfor n in range(16):\n    try: os.write(n, {reply!r})\n    except OSError: pass\nos._exit(0)"
        yield f"{name} and an end", (send, TESTS)
    flood = "import os\nwhile True:\n    for n in range(16):\n        try: os.write(n, b'{}' * 1000)\n        except OSError: pass\n"
    yield "an endless message", (flood, TESTS)


SYSTEM_CALLS = {
    "socket": 41, "connect": 42, "accept": 43, "sendto": 44, "recvfrom": 45, "sendmsg": 46, "bind": 49, "listen": 50,
    "socketpair": 53, "clone": 56, "fork": 57, "vfork": 58, "execve": 59, "wait4": 61, "kill": 62, "semget": 64,
    "shmget": 29, "shmat": 30, "msgget": 68, "rename": 82, "mkdir": 83, "rmdir": 84, "creat": 85, "link": 86,
    "unlink": 87, "symlink": 88, "chmod": 90, "fchmod": 91, "chown": 92, "fchown": 93, "umask": 95, "ptrace": 101,
    "setuid": 105, "setgid": 106, "setpgid": 109, "setsid": 112, "setgroups": 116, "setresuid": 117, "capset": 126,
    "rt_sigqueueinfo": 129, "utime": 132, "mknod": 133, "personality": 135, "setpriority": 141, "sched_setparam": 142,
    "sched_setscheduler": 144, "mlock": 149, "pivot_root": 155, "prctl": 157, "setrlimit": 160, "chroot": 161,
    "mount": 165, "umount2": 166, "swapon": 167, "reboot": 169, "sethostname": 170, "init_module": 175,
    "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "removexattr": 197, "tkill": 200, "sched_setaffinity": 203,
    "io_setup": 206, "epoll_create": 213, "timer_create": 222, "tgkill": 234, "utimes": 235, "mq_open": 240,
    "keyctl": 250, "ioprio_set": 251, "inotify_init": 253, "mkdirat": 258, "mknodat": 259, "fchownat": 260,
    "futimesat": 261, "unlinkat": 263, "renameat": 264, "linkat": 265, "symlinkat": 266, "fchmodat": 268,
    "unshare": 272, "splice": 275, "vmsplice": 278, "utimensat": 280, "signalfd": 282, "timerfd_create": 283,
    "eventfd": 284, "fallocate": 285, "pipe2": 293, "perf_event_open": 298, "rt_tgsigqueueinfo": 297,
    "name_to_handle_at": 303, "open_by_handle_at": 304, "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311,
    "kcmp": 312, "finit_module": 313, "sched_setattr": 314, "renameat2": 316, "seccomp": 317, "memfd_create": 319,
    "bpf": 321, "execveat": 322, "userfaultfd": 323, "copy_file_range": 326, "pidfd_send_signal": 424,
    "io_uring_setup": 425, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsmount": 432, "pidfd_open": 434,
    "clone3": 435, "openat2": 437, "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442,
    "landlock_create_ruleset": 444, "memfd_secret": 447, "fchmodat2": 452, "setxattrat": 463,
}  # fmt: skip
"""Numbers on x86-64; on arm64 the family makes other calls, most of them forbidden too."""


def system_calls() -> Iterator[Attempt]:
    """Forbidden calls by their numbers, past Python and libc, and allowed ones with forbidden arguments."""
    call = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nanswer = libc.syscall({})\nassert answer >= 0 or ctypes.get_errno() != 1\n"
    for name, number in SYSTEM_CALLS.items():
        yield f"system call {name}", (call.format(f"{number}, 0, 0, 0, 0, 0") + RIGHT, TESTS)
    every = (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\ndef f(numbers):\n    found = []\n    for n in numbers:\n"
        "        if libc.syscall(n, 0, 0, 0, 0, 0) >= 0 or ctypes.get_errno() != 1: found.append(n)\n    return found\n"
    )
    yield "every number of x32", (every, "assert f(range(0x40000000, 0x40000220))")
    yield "every high number", (every, "assert f([*range(460, 600), -1, 1 << 31, (1 << 32) - 1])")
    for name, arguments in {
        "open for writing": "2, b'/dev/null', 1", "open, made": "2, b'/tmp/x', 0o100, 0o600", "openat for writing": "257, -100, b'/dev/null', 2",
        "openat, cut": "257, -100, b'/dev/null', 0o1000", "unnamed file": "257, -100, b'/tmp', 0o20200001",
        "prlimit of another": "302, 1, 7, 0, 0", "prlimit with a limit": "302, 0, 7, b'1' * 16, 0", "affinity of another": "204, 1, 8, b'1' * 8",
        "F_SETOWN": "72, 0, 8, 1", "F_SETSIG": "72, 0, 10, 9", "F_SETOWN_EX": "72, 0, 15, b'1' * 8", "F_SETLEASE": "72, 0, 1024, 1",
        "F_NOTIFY": "72, 0, 1026, 1", "F_SETPIPE_SZ": "72, 3, 1031, 4096", "O_ASYNC": "72, 0, 4, 0o20000", "TIOCSTI": "16, 0, 0x5412, b'x'",
        "FIOSETOWN": "16, 0, 0x8901, b'1' * 4", "TIOCSCTTY": "16, 0, 0x540e, 0", "FIOASYNC": "16, 0, 0x5452, b'1' * 4",
    }.items():  # fmt: skip
        yield f"{name} by number", (call.format(arguments) + RIGHT, TESTS)


def machine(file: str, process: int) -> Iterator[Attempt]:
    """Attacks on files and processes outside, by Python's own functions."""
    for name, attack in {
        "write": "open({file!r}, 'w').write('x')", "append": "open({file!r}, 'a').write('x')", "update": "open({file!r}, 'r+b')",
        "remove": "import os; os.unlink({file!r})", "rename": "import os; os.rename({file!r}, {file!r} + '2')",
        "folder": "import os; os.mkdir({file!r} + '3')", "mode": "import os; os.chmod({file!r}, 0)",
        "owner": "import os; os.chown({file!r}, 1, 1)", "link": "import os; os.symlink('/', {file!r} + '4')",
        "hard link": "import os; os.link({file!r}, {file!r} + '5')", "truncate": "import os; os.truncate({file!r}, 0)",
        "times": "import os; os.utime({file!r}, (0, 0))", "attribute": "import os; os.setxattr({file!r}, 'user.x', b'1')",
        "fifo": "import os; os.mkfifo({file!r} + '6')", "node": "import os; os.mknod({file!r} + '7')",
        "read": "assert open({file!r}).read()", "list": "import os; assert os.listdir(os.path.dirname({file!r}))",
        "tree": "import os, shutil; shutil.rmtree(os.path.dirname({file!r})); assert not os.path.exists({file!r})",
        "home": "import pathlib; pathlib.Path.home().joinpath('.x').write_text('x')", "temporary": "import tempfile; tempfile.TemporaryFile()",
        "large file": "open({file!r} + '8', 'wb').write(b'x' * (1 << 30))", "database": "import sqlite3; sqlite3.connect({file!r} + '9').execute('create table a (b)')",
        "memory map": "import mmap; mmap.mmap(open({file!r}, 'r+b').fileno(), 0)[0:1] = b'x'", "shared memory": "from multiprocessing import shared_memory as s; s.SharedMemory(create=True, size=9)",
        "bytecode": "import py_compile; py_compile.compile(__import__('os').__file__, {file!r} + 'c', doraise=True)",
        "shadow": "open('/etc/shadow').read()", "users": "open('/etc/passwd').read()", "processes": "import os; assert os.listdir('/proc')",
        "root folder": "import os; assert 'etc' in os.listdir('/')", "devices": "open('/dev/zero', 'rb')", "kernel": "open('/proc/sys/kernel/hostname').read()",
        "environment": "import os; assert os.environ.get('SECRET_WORD')", "environment of C": "import ctypes; g = ctypes.CDLL(None).getenv; g.restype = ctypes.c_char_p; assert g(b'SECRET_WORD')",
        "own environment": "assert b'SECRET_WORD' in open('/proc/self/environ', 'rb').read()", "other environment": "open('/proc/{process}/environ', 'rb').read()",
        "memory of a process": "open('/proc/{process}/mem', 'rb').seek(0)", "maps": "open('/proc/self/maps').read()",
        "socket": "import socket; socket.socket()", "Unix socket": "import socket; socket.socketpair()", "server": "import socket; socket.create_server(('', 0))",
        "download": "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')", "name": "import socket; socket.gethostbyname('localhost')",
        "fork": "import os; os.fork()", "fork bomb": "import os\nwhile True: os.fork()", "process": "import subprocess; subprocess.run(['true'])",
        "exec": "import os; os.execv('/bin/true', ['true'])", "spawn": "import os; os.posix_spawn('/bin/true', ['true'], {{}})", "shell": "import os; assert os.system('true') == 0",
        "popen": "import os; os.popen('true').read()", "pool": "import multiprocessing as m; p = m.Process(target=print); p.start()",
        "thread": "import threading; threading.Thread(target=print).start()", "executor": "from concurrent.futures import ThreadPoolExecutor as T; T().submit(print).result()",
        "terminal": "import pty; pty.fork()", "web browser": "import webbrowser; assert webbrowser.open('x')",
        "signal": "import os; os.kill({process}, 15)", "probe": "import os; os.kill({process}, 0)", "group": "import os; os.killpg(os.getpgid(0), 9)",
        "all": "import os; os.kill(-1, 9)", "parent": "import os; os.kill(os.getppid(), 9)", "itself": "import os, signal; os.kill(os.getpid(), signal.SIGCONT)",
        "queued signal": "import ctypes; assert ctypes.CDLL(None).sigqueue({process}, 15, 0) == 0", "pidfd": "import os, signal; signal.pidfd_send_signal(os.pidfd_open({process}), 15)",
        "owner of a pipe": "import fcntl; fcntl.fcntl(0, fcntl.F_SETOWN, {process})", "signal of a pipe": "import fcntl; fcntl.fcntl(0, fcntl.F_SETSIG, 15)",
        "limits of a process": "import resource; resource.prlimit({process}, resource.RLIMIT_NOFILE, (9, 9))", "its limits": "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
        "priority": "import os; os.setpriority(os.PRIO_PROCESS, {process}, 9)", "its priority": "import os; os.nice(3)", "priority of a user": "import os; os.setpriority(os.PRIO_USER, 0, 9)",
        "affinity": "import os; os.sched_setaffinity({process}, {{0}})", "its affinity": "import os; os.sched_setaffinity(0, {{0}})",
        "scheduler": "import os; os.sched_setscheduler({process}, os.SCHED_IDLE, os.sched_param(0))", "trace": "import ctypes; assert ctypes.CDLL(None).ptrace(16, {process}, 0, 0) == 0",
        "session": "import os; os.setsid()", "group of processes": "import os; os.setpgid(0, 0)", "session of a process": "import os; assert os.getsid({process})",
        "root": "import os; os.chroot('/')", "folder of work": "import os; os.chdir('/usr')", "mask": "import os; os.umask(0)", "user": "import os; os.setuid(0)", "group of users": "import os; os.setgroups([])",
        "clock": "import time; time.clock_settime(time.CLOCK_REALTIME, 0)", "host name": "import socket; socket.sethostname('x')",
        "memory": "b = bytearray(2 << 30)", "memory, bit by bit": "b = []\nwhile True: b.append(bytearray(1 << 24))", "deep recursion": "def g(): return g() + g()\ng()",
        "many files": "import sys; b = [open(sys.modules['os'].__file__) for _ in range(99)]", "syslog": "import syslog; syslog.openlog(); import socket; socket.socket(socket.AF_UNIX).connect('/dev/log')",
    }.items():  # fmt: skip
        yield f"machine: {name}", (f"{attack.format(file=file, process=process)}\n{RIGHT}", TESTS)


SLOW = {
    "endless loop": "while True: pass", "endless output": "while True: print('x' * 10000)", "endless number": "x = 10 ** 10 ** 8",
    "endless call": f"{RIGHT}g = f\ndef f(x):\n    while g(x): pass", "endless handler": "import signal\ndef h(*a):\n    while True: pass\nsignal.signal(14, h); signal.alarm(1)\nh()",
    "sleep": "import time; time.sleep(1e6)", "no answer": f"{RIGHT}def f(x):\n    import os; os.read(3, 1 << 20); os.read(4, 1)", "silence": "import os\nos.write = lambda pipe, content: len(content)", "waiting": "import select; select.select([], [], [])",
}  # fmt: skip
"""Programs that use all their time."""


def attempts(file: str, process: int) -> dict[str, tuple[str, str]]:
    """Every attempt but `SLOW`: name -> (program, tests)."""
    assert os.path.isabs(file)
    families = (replaced_names(), lying_values(), raised_ends(), harness(), forged_replies(), system_calls())
    every: dict[str, tuple[str, str]] = {}
    for family in (*families, machine(file, process)):
        for name, attempt in family:
            assert name not in every, name
            every[name] = attempt
    return every
