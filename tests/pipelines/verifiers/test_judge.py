"""Verifiers against what models write and what programs try; formats and files of problems."""

import ctypes
import json
import os
import time
from pathlib import Path

import pytest

from pipelines.configuration.data import DataConfig
from pipelines.data.corpus import Corpus, prepare
from pipelines.data.questions import Question, contamination, load_questions
from pipelines.errors import StageFailure, UserError
from pipelines.tasks.families import generate
from pipelines.tasks.formats import FORMATS
from pipelines.verifiers import VERIFIERS, Judge, Verifier
from tests.pipelines.grpo.test_training import small_corpus


def judged(name: str, pairs: list[tuple[str, str]], workers: int = 1) -> list[float]:
    with Judge(workers) as judge:
        return [verdict.reward for verdict in judge.rewards([(name, a, b) for a, b in pairs])]


def test_equality_is_exact() -> None:
    with Judge() as judge:
        found = judge.rewards([("exact", "7", "7"), ("exact", "7.0", "7"), ("exact", None, "7"), ("exact", "", "")])
    assert [verdict.reward for verdict in found] == [1, 0, 0, 1]


MATH = [
    (r"so it is \boxed{\frac{1}{2}}", "0.5", 1),
    (r"$x^2 + 2x + 1$", "(x+1)^2", 1),
    ("the answer is 7", "7", 1),
    ("the answer is 7", "8", 0),
    (r"\boxed{3} or rather \boxed{4}", "3", 0),
    (r"\boxed{\sqrt{8}}", r"2\sqrt{2}", 1),
    ("no idea", "5", 0),
    (r"\boxed{\{1, 2\}}", r"\{2, 1\}", 1),
]


@pytest.mark.slow
def test_mathematics_is_compared_by_value() -> None:
    assert judged("math", [(answer, reference) for answer, reference, _ in MATH]) == [right for *_, right in MATH]


@pytest.mark.slow
@pytest.mark.parametrize(
    "limits",
    [Verifier(VERIFIERS["math"].function, 2.0), Verifier(VERIFIERS["math"].function, 60.0, 0.5)],
    ids=["wall", "processor"],
)
def test_an_expression_that_hangs_costs_its_time_limit(limits: Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VERIFIERS, "math", limits)
    with Judge(1) as judge:
        judge.rewards([("math", "1", "1")])
        began = time.monotonic()
        found = judge.rewards([("math", r"\boxed{9^{9^{9^{9^9}}}}", "3"), ("math", "4", "4")])
    assert [tuple(verdict) for verdict in found] == [(0.0, "timeout"), (1.0, None)]
    assert time.monotonic() - began < 60
    with Judge() as judge:
        assert judge.rewards([("math", "1" * 5000, "1")])[0].reward == 0  # too long to be read


@pytest.mark.slow
def test_after_a_timeout_the_same_worker_goes_on_in_another_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function of the standard library tells the process that answers: `os.getpid` does not import anew."""
    monkeypatch.setitem(VERIFIERS, "spins", Verifier("tests.pipelines.verifiers.spinning:verify", 60.0, 0.2))
    with Judge(1) as judge:
        asked = ["pid", "parent", "spin", "pid", "parent", "die", "parent"]
        found = judge.rewards([("spins", word, str(i)) for i, word in enumerate(asked)])
    rewards, failures = zip(*found, strict=True)
    assert failures == (None, None, "timeout", None, None, "error", None)
    assert rewards[0] != rewards[3]  # another fork
    assert rewards[1] == rewards[4]  # of the same worker
    assert rewards[6] != rewards[1]  # which ends when its fork dies of anything else


@pytest.mark.slow
def test_equal_items_are_put_to_their_verifier_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VERIFIERS, "spins", Verifier("tests.pipelines.verifiers.spinning:verify", 60.0))
    items = [("spins", "count", reference) for reference in "abacba"]
    with Judge(1) as judge:
        rewards = [round(verdict.reward * 2**32) for verdict in judge.rewards([*items, ("exact", "a", "a")])]
    assert rewards == [1, 2, 1, 3, 2, 1, 2**32]


def test_a_verifier_that_cannot_be_loaded_is_a_failure_of_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VERIFIERS, "none", Verifier("no_such_module:verify", 1.0))
    with Judge(1) as judge, pytest.raises(StageFailure, match=r"no_such_module:verify cannot be loaded: .*ModuleNot"):
        judge.rewards([("none", "1", "1")])


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
    assert judged("code", [(program, TESTS) for program in programs]) == list(programs.values())


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
    """Each attack is followed by a right answer: it passes only if the attack went through."""
    monkeypatch.setenv("SECRET_WORD", "xyzzy")
    file = tmp_path / "victim"
    file.write_text("whole")
    names = {"file": str(file), "folder": str(tmp_path)}
    programs = [(f"{attack.format(**names)}\n{RIGHT}", TESTS) for attack in ATTACKS.values()]
    found = dict(zip(ATTACKS, judged("code", programs, workers=2), strict=True))
    assert found == dict.fromkeys(ATTACKS, 0.0)
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
    "a check of one's own": "def check(f): pass\n",
    "an early end": "import sys\ndef f(x): sys.exit(0)\n",
    "an end with the word": "import os\ndef f(x): os.write(3, b'0' * 32); os._exit(0)\n",
    "a raised success": "raise SystemExit(0)\n",
}


def test_a_program_reads_nothing_of_the_user(tmp_path: Path) -> None:
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
    fine = "import decimal, fractions, statistics, textwrap, zoneinfo"
    assert judged("code", [(f"{begin}\n{RIGHT}", TESTS) for begin in [*reads, fine]]) == [0] * len(reads) + [1]


def test_a_program_cannot_cheat_its_tests() -> None:
    """What HumanEval+ and MBPP+ call: comparisons of arrays, `abs`, `all`, a function named check."""
    tests = (
        "import numpy as np\ndef check(f):\n    assert f(3) == 4 and f(-1) == 0\n    assert abs(f(3) - 4) < 1e-6\n"
        "    assert all(f(i) == i + 1 for i in range(3))\n    assert np.allclose(f(2), 3)\ncheck(f)"
    )
    loose = [
        "assert abs(f(3) - 4) < 1e-6",
        "import numpy as np\nassert np.allclose(f(3), 4)",
        "assert all([f(3) == 4])",
    ]
    found = judged("code", [(program, t) for t in (tests, *loose) for program in (RIGHT, *CHEATS.values())])
    assert found == ([1] + [0] * len(CHEATS)) * 4


def test_a_program_that_never_ends_is_killed() -> None:
    began = time.monotonic()
    with Judge(1) as judge:
        found = judge.rewards([("code", "while True: pass", TESTS), ("code", RIGHT, TESTS)])
    assert [verdict.reward for verdict in found] == [0, 1]
    assert time.monotonic() - began < 60


# Problems


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("cache"))


def test_the_corpus_and_rl_write_the_same_prompt(corpus: Corpus) -> None:
    for question in load_questions("boolean", "rl", corpus)[:20]:
        problem = next(p for p in corpus.problems("boolean", "rl") if p.question == question.question)
        assert question.prompt == problem.prompt
        for response in (problem.worked, problem.outright):
            assert question.judged(response) == ("exact", problem.answer, problem.answer)
            assert question.judged(response + "\nQ: T&F") == ("exact", problem.answer, problem.answer)


@pytest.mark.parametrize(
    ("form", "response", "answer"),
    [
        ("marked", "1+1=2 #### 2", "2"),
        ("marked", "#### 1 or\n#### 2\nmore", "2"),
        ("marked", "two", None),
        ("boxed", r"so \boxed{7}", r"so \boxed{7}"),
        ("boxed", r"<think>\boxed{1}</think> it is \boxed{2}.", r"it is \boxed{2}."),
        ("boxed", "it is 2", None),
        ("python", "a\n```python\nx = 1\n```\nb\n```python\nx = 2\n```", "x = 2"),
        ("python", "x = 1", None),
    ],
)
def test_answers_are_found_where_the_format_says(form: str, response: str, answer: str | None) -> None:
    assert FORMATS[form].extract(response) == answer


def test_programs_are_right_when_hidden_tests_pass(tmp_path: Path) -> None:
    corpus = prepare(DataConfig("p", [], ["program"], 400, 0.0, 0.0, 270, 8), tmp_path)
    question = next(q for q in load_questions("program", "rl", corpus))
    problem = next(p for p in corpus.problems("program", "rl") if p.question == question.question)
    shift = int(problem.answer.removeprefix("x"))
    other = [f" #### {shift}+x", f" #### (lambda y: y)(x){shift:+d}"]
    responses = [problem.outright, *other, problem.careless, " x", " #### x +"]
    with Judge(1) as judge:
        found = judge.rewards([question.judged(response) for response in responses])
    assert [verdict.reward for verdict in found] == [1, 1, 1, 0, 0, 0]


def test_a_file_of_problems_is_split_and_checked(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "math.jsonl"
    lines = [{"question": f"What is {i} + 1?", "answer": i + 1} for i in range(300)]
    path.write_text("\n".join(map(json.dumps, [*lines, lines[0]])))
    asked, held_out = (load_questions(str(path), split, corpus) for split in ("rl", "validation"))
    assert len(asked) + len(held_out) == 300
    assert not {q.question for q in asked} & {q.question for q in held_out}
    assert 3 <= len(held_out) <= 30
    assert "\\boxed{}" in asked[0].prompt
    path.write_text('{"question": "1"}')
    with pytest.raises(UserError, match=r'math\.jsonl:1: a line is a JSON object with "question" and "answer"'):
        load_questions(str(path), "rl", corpus)
    path.write_text('{"question": "1", "answer": "1", "format": "box"}')
    with pytest.raises(UserError, match=r"format=box: did you mean 'boxed'"):
        load_questions(str(path), "rl", corpus)


def test_contamination_counts_questions_that_training_shows(corpus: Corpus) -> None:
    seen = corpus.problems("boolean", "train")[:3]
    unseen = load_questions("boolean", "rl", corpus)[:1]
    asked = [Question("t", p.question.lower() + " ", p.answer, "marked") for p in seen] + unseen
    assert contamination(asked, corpus, ["boolean"]) == 0.75
    assert contamination(unseen, corpus, ["boolean"]) == 0


def test_reasoning_gym_is_a_family_like_any_other() -> None:
    pytest.importorskip("reasoning_gym", reason="the extra `gym` is not installed")
    problems = generate("gym_number_sorting", 300, seed=0)
    assert len({p.question for p in problems}) == 300
    assert problems == generate("gym_number_sorting", 300, seed=0)
    shared = {p.question for p in problems} & {p.question for p in generate("gym_number_sorting", 300, seed=1)}
    assert len(shared) < 30
    for problem in problems:
        _, direction, *numbers = problem.question.split()
        assert problem.answer == " ".join(sorted(numbers, reverse=direction == "down"))
    assert generate("gym_count_bits", 5, seed=0)[0].answer.isdigit()
