"""Runs tests in forked processes: once under coverage, to learn what each reaches and costs, then on mutants."""

import ast
import contextlib
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import coverage
import pytest
from filelock import FileLock

PACKAGES = ("shaping", "pipelines", "sweeps", "analysis")
LIBRARIES = (
    *("torch", "numpy", "pandas", "scipy.stats", "hydra", "networkx", "orjson", "pyarrow", "typer", "rich"),
    *("hypothesis", "safetensors.torch", "tokenizers", "transformers", "lightning", "filelock"),
)
"""Imported once, before any process is forked; nothing of the project may be."""
MEASURING = 60
"""Seconds for a test file under coverage; tests that have not ended by then are not used."""
ENOUGH = signal.SIGVTALRM
"""Tells a measuring process that its time is up. pytest-timeout has the usual alarm."""


def tests_of(copy: Path, source: str, line: int, *, test_files: list[str], limit: float, cache: Path) -> list[str]:
    """Passing tests of `test_files` that run `line` of `source`, for `limit` seconds.

    Those of the first file come first, then those of the others, each the cheapest first. What time is left goes to
    tests of further files that earlier mutants have had measured. Where none is known to reach
    the line (it runs at import, in another process or in Triton's interpreter), any of `test_files`, those of the first
    files first.
    """
    records: dict[str, dict[str, Any]] = {}
    for file in test_files:
        records |= _records(copy, source, file, cache)
    others: dict[str, dict[str, Any]] = {}
    for path in (copy / "tests").rglob("test_*.py"):
        if (file := str(path.relative_to(copy))) not in test_files:
            others |= _known(copy, source, file, cache) or {}
    # What runs at import is seen in whichever test imported the module first, and says nothing about the others.
    in_function = runs_in_a_function((copy / source).read_text(), line)
    reaching = {n: r for n, r in (records | others).items() if in_function and line in r["lines"].get(source, ())}
    rank = {file: min(number, 1) if reaching else number for number, file in enumerate(test_files)}
    shared: set[str] = set()
    chosen, total = [], 0.0

    def order(named: tuple[str, dict[str, Any]]) -> tuple[int, float]:
        return rank.get(named[0].split("::")[0], len(test_files)), _cost(named[1])

    for name, record in sorted((reaching or records).items(), key=order):
        cost = record["seconds"] + sum(cost for fixture, cost in record["shared"].items() if fixture not in shared)
        if total + cost <= limit:
            total += cost
            shared |= set(record["shared"])
            chosen.append(name)
    return chosen


def runs_in_a_function(text: str, line: int) -> bool:
    """Whether the line of a module's text runs when a function is called, and not when the module is imported."""
    return any(
        node.body[0].lineno <= line <= (node.end_lineno or line)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        else isinstance(node, ast.Lambda) and node.lineno <= line <= (node.end_lineno or line)
        for node in ast.walk(ast.parse(text))
    )


def _records(copy: Path, source: str, test_file: str, cache: Path) -> dict[str, dict[str, Any]]:
    """What each passing test of the file costs and reaches, measured again where the file or `source` has changed."""
    kept = cache / f"{_digest(copy / test_file)}.tests"
    with FileLock(kept.with_suffix(".lock")):  # another process may measure the same file
        if (known := _known(copy, source, test_file, cache)) is not None:
            return known
        kept.unlink(missing_ok=True)
        with _forked(lambda: _measure(copy, test_file, kept), copy) as child:
            if _wait(child, MEASURING) is None:
                os.kill(child, ENOUGH)
                _wait(child, 20)
        if not kept.exists():  # it did not end
            kept.write_text('{"sources": {}, "records": {}}')
        return json.loads(kept.read_text())["records"]


def _known(copy: Path, source: str, test_file: str, cache: Path) -> dict[str, dict[str, Any]] | None:
    """What was measured of the test file; None where it was not, or of another `source`."""
    kept = cache / f"{_digest(copy / test_file)}.tests"
    if not kept.exists():
        return None
    known = json.loads(kept.read_text())
    return known["records"] if known["sources"].get(source, _digest(copy / source)) == _digest(copy / source) else None


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:32]


def run_tests(copy: Path, tests: list[str], seconds: float) -> str:
    """What happened to the mutant: killed, survived or timeout."""
    with _forked(lambda: int(pytest.main(["-x", *_options(copy), *tests])), copy) as child:
        status = _wait(child, seconds)
    return "timeout" if status is None else "survived" if status == 0 else "killed"


def _cost(record: dict[str, Any]) -> float:
    return record["seconds"] + sum(record["shared"].values())


def _options(copy: Path) -> list[str]:
    return ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--basetemp={copy.parent / 'temporary'}"]


def _measure(copy: Path, test_file: str, kept: Path) -> int:
    measured = coverage.Coverage(data_file=None, source=[str(copy / package) for package in PACKAGES])
    plugin = _Costs(measured)

    def end(*_: object) -> None:
        measured.stop()
        plugin.write(copy, kept)
        os._exit(0)

    signal.signal(ENOUGH, end)
    measured.start()
    pytest.main([*_options(copy), test_file], plugins=[plugin])
    end()
    return 0


class _Costs:
    """Notes what tests and shared fixtures cost, and labels covered lines with the test."""

    def __init__(self, measured: coverage.Coverage) -> None:
        self.measured = measured
        self.records: dict[str, dict[str, Any]] = {}
        self.fixtures: dict[str, float] = {}

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        started = time.monotonic()
        yield
        if fixturedef.scope != "function":
            self.fixtures[f"{fixturedef.baseid}:{fixturedef.argname}"] = time.monotonic() - started

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.measured.switch_context(item.nodeid)
        yield
        self.measured.switch_context("")

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
        outcome: Any = yield
        report = outcome.get_result()
        if call.when == "call":
            names = set(getattr(item, "fixturenames", ()))
            shared = {key: cost for key, cost in self.fixtures.items() if key.rpartition(":")[2] in names}
            if report.passed:
                self.records[item.nodeid] = {"seconds": report.duration, "shared": shared, "lines": {}}

    def write(self, copy: Path, kept: Path) -> None:
        """Write the records, with the hashes of the sources that they are true of."""
        data, sources = self.measured.get_data(), {}
        for file in data.measured_files():
            source = str(Path(file).relative_to(copy))
            sources[source] = _digest(Path(file))
            for line, names in data.contexts_by_lineno(file).items():
                for name in names:
                    if name in self.records:
                        self.records[name]["lines"].setdefault(source, []).append(line)
        unfinished = kept.with_suffix(".unfinished")
        unfinished.write_text(json.dumps({"sources": sources, "records": self.records}))
        unfinished.replace(kept)  # others read it meanwhile


@contextlib.contextmanager
def _forked(work: Callable[[], int], copy: Path) -> Iterator[int]:
    """The id of a process, leader of its own group, that runs `work` in `copy`; its group is killed at the end."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setsid()
            os.chdir(copy)
            sys.path.insert(0, str(copy))
            for name in [n for n in sys.modules if n.split(".")[0] in ("benchmarks", "tests")]:
                del sys.modules[name]
            quiet = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(quiet, descriptor)
            status = work()
        finally:
            os._exit(status)
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)


def _wait(child: int, seconds: float) -> int | None:
    """The exit status of the child; None after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    return None
