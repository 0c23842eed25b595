"""Changes the code in small ways, one at a time, and tells which changes no test notices.

    python -m benchmarks.mutants                       # the files that differ from main (or from the last commit)
    python -m benchmarks.mutants --core --sample 200   # a random sample over the code that every result rests on
    python -m benchmarks.mutants --files shaping analysis/claims.py --sample 50 --seed 2
    python -m benchmarks.mutants --again FILE          # those that no test noticed in an earlier run with --json FILE

Mutants are made in a copy of the repository. The tests of a file are its mirrored test file and the test files that
import it; they run once unchanged under coverage, which tells for every line the tests that pass through it and what
each costs. A mutant meets the cheapest of those tests up to a time limit, in a process forked from one that has already
imported the libraries. What was measured is kept in `.mutants/`, by the hashes of the code and of the tests.

A survivor was not noticed by *these* tests: the rest of the suite may. `tests/equivalent_mutants.txt` lists changes
that change nothing; they are not counted.
"""

import argparse
import compileall
import hashlib
import importlib
import itertools
import json
import os
import py_compile
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

from benchmarks.mutant_tests import LIBRARIES, PACKAGES, run_tests, tests_of
from benchmarks.mutations import Mutation, candidates

ROOT = Path(__file__).parent.parent
CACHE = ROOT / ".mutants"
EQUIVALENT = ROOT / "tests" / "equivalent_mutants.txt"
CORE = (
    *("shaping", "pipelines/grpo/algorithm.py", "pipelines/grpo/collection.py", "pipelines/grpo/update.py"),
    *("pipelines/grpo/policy.py", "pipelines/evaluation/metrics.py", "analysis/statistics.py", "analysis/estimates.py"),
    *("analysis/claims.py", "analysis/claim_language.py", "analysis/claim_sources.py", "sweeps/plan/signatures.py"),
    *("sweeps/store", "pipelines/published.py", "analysis/published_files.py"),
)
MISSED = ("survived", "untested")
SPAN = 20
"""Most lines from the beginning of an expression to the one that changes."""
TEST_FILES = 8
"""At most so many test files per changed file, the most closely related first."""


def main() -> None:
    """Run the sample and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", nargs="+", help="files or folders (default: those changed against main)")
    parser.add_argument("--core", action="store_true", help="the code that every result rests on")
    parser.add_argument("--all", action="store_true", help="the four packages")
    parser.add_argument("--sample", type=int, help="so many mutants, at random (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=10.0, help="seconds of tests per mutant")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: the cores)")
    parser.add_argument("--minutes", type=float, help="start no further mutant after so long")
    parser.add_argument("--json", type=Path, help="also write every mutant with its outcome")
    parser.add_argument("--again", type=Path, help="a file that --json wrote: meet its survivors with today's tests")
    options = parser.parse_args()
    end = time.monotonic() + 60 * (options.minutes or 1e9)
    if options.again:
        earlier: list[dict[str, Any]] = json.loads(options.again.read_text())
        survivors = [outcome for outcome in earlier if outcome["outcome"] in MISSED]
        again = _outcomes(_found_again(survivors), options.limit, end, options.jobs)
        _report([outcome for outcome in earlier if outcome["outcome"] not in MISSED] + again, options.json)
        return
    named = PACKAGES if options.all else CORE if options.core else options.files or _changed_files()
    paths = sorted({str(file) for name in named for file in _files(name)})
    if not paths:
        print("no file of the four packages has changed: name some with --files, --core or --all")
        return
    sample = _sample(paths, options.sample, options.seed)
    _report(_outcomes(sample, options.limit, end, options.jobs), options.json)


def _report(outcomes: list[dict[str, Any]], path: Path | None) -> None:
    _print_table(outcomes)
    if path:
        path.write_text(json.dumps(outcomes, indent=1))


def _changed_files() -> list[str]:
    """Files that differ from main, or where nothing does, those of the last commit."""
    for base in ("origin/main...", "main...", "main", "HEAD~1"):
        command = ["git", "diff", "--name-only", "--diff-filter=AM", base, "--", *(f"{p}/*.py" for p in PACKAGES)]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split()
        if found:
            return found
    return []


def _files(name: str) -> list[Path]:
    path = ROOT / name
    found = sorted(path.rglob("*.py")) if path.is_dir() else [path] if path.is_file() else []
    if not found:
        sys.exit(f"--files {name}: no such file or folder")
    return [file.relative_to(ROOT) for file in found if "template" not in file.parts]


def _sample(paths: list[str], size: int | None, seed: int) -> list[Mutation]:
    places = [place for path in paths for place in candidates(ROOT, path)]
    chosen = places if size is None else random.Random(seed).sample(places, min(size, len(places)))
    print(f"{len(chosen)} of {len(places)} mutants in {len(paths)} files", flush=True)
    return _with_effect([place.mutation() for place in chosen])


def _with_effect(mutations: list[Mutation]) -> list[Mutation]:
    """The mutations without equivalent ones, by place."""
    equivalent = {line.split("  # ")[0].strip() for line in EQUIVALENT.read_text().splitlines()}
    kept = [mutation for mutation in mutations if mutation.key not in equivalent]
    print(f"{len(mutations) - len(kept)} of them are equivalent", flush=True)
    return sorted(kept, key=lambda mutation: (mutation.path, mutation.line))


def _found_again(outcomes: list[dict[str, Any]]) -> list[Mutation]:
    """The mutations of these outcomes in today's code, each where its line is now."""
    found = []
    for path, group in itertools.groupby(sorted(outcomes, key=lambda o: str(o["path"])), lambda o: o["path"]):
        code = [line.strip() for line in (ROOT / path).read_text().splitlines()]
        places = candidates(ROOT, path)
        made: dict[int, Mutation] = {}
        for outcome in group:
            numbers = [number for number, line in enumerate(code, 1) if line == outcome["before"]]
            if not numbers:
                continue
            line = min(numbers, key=lambda number: abs(number - outcome["line"]))
            # Making a mutation takes long, and most begin in the line that they change.
            near = [i for i, place in enumerate(places) if line - SPAN <= place.line <= line]
            for index in sorted(near, key=lambda i: line - places[i].line):
                if index not in made:
                    made[index] = places[index].mutation()
                mutation = made[index]
                if (mutation.line, mutation.before, mutation.after) == (line, outcome["before"], outcome["after"]):
                    found.append(mutation)
                    break
    print(f"{len(found)} of {len(outcomes)} mutants are still in the code", flush=True)
    return _with_effect(found)


def _outcomes(mutations: list[Mutation], limit: float, end: float, jobs: int) -> list[dict[str, Any]]:
    """What became of each mutation; each process takes the mutations of one file at a time."""
    # As in tests/conftest.py, and before the libraries are loaded: Triton reads the first when it is imported.
    os.environ |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    for library in LIBRARIES:
        importlib.import_module(library)
    CACHE.mkdir(exist_ok=True)
    files = [list(group) for _, group in itertools.groupby(mutations, lambda mutation: mutation.path)]
    random.Random(0).shuffle(files)  # so that those of a run that is out of time are a sample too
    outcomes: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory(prefix="mutants-") as folder,
        ProcessPoolExecutor(jobs, get_context("fork"), initializer=_copy_repository, initargs=(folder,)) as pool,
    ):
        try:
            for done in as_completed([pool.submit(_outcomes_of_file, file, limit, end) for file in files]):
                for outcome in done.result():
                    outcomes.append(outcome)
                    _print_outcome(outcome)
        except BaseException:  # Ctrl-C, or a signal to end
            pool.shutdown(wait=False, cancel_futures=True)
            for process in active_children():
                process.terminate()
            raise
    if len(outcomes) < len(mutations):
        print(f"out of time: {len(mutations) - len(outcomes)} mutants were not tried")
    return sorted(outcomes, key=lambda outcome: (outcome["path"], outcome["line"]))


_copy = Path()
"""The copy of the repository that this process changes."""


def _outcomes_of_file(mutations: list[Mutation], limit: float, end: float) -> list[dict[str, Any]]:
    outcomes: list[dict[str, Any]] = []
    for mutation in mutations:
        if time.monotonic() < end:
            outcomes.append(_outcome(mutation, _copy, limit))
    return outcomes


def _copy_repository(folder: str) -> None:
    """Copy tracked and new files for this process, compiled so that a file changed within a second is noticed."""
    global _copy
    _copy = copy = Path(folder) / str(os.getpid()) / "repository"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    compileall.compile_dir(copy, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
    os.environ.update(PYTHONPATH=str(copy), PYTHONDONTWRITEBYTECODE="1")
    sys.dont_write_bytecode = True


def _outcome(mutation: Mutation, copy: Path, limit: float) -> dict[str, Any]:
    """The mutation with what became of it: killed, timeout, survived, or untested where no test reaches the line."""
    test_files = _test_files(mutation.path, copy)
    chosen = tests_of(copy, mutation.path, mutation.line, test_files=test_files, limit=limit, cache=CACHE)
    files = sorted({test.split("::")[0] for test in chosen})
    parts = [mutation.text, *chosen, *((copy / file).read_text() for file in files)]
    record = CACHE / f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:32]}.outcome"
    started = time.monotonic()
    if not record.exists():
        original = (copy / mutation.path).read_text()
        (copy / mutation.path).write_text(mutation.text)
        try:
            record.write_text(run_tests(copy, chosen, 3 * limit + 20) if chosen else "untested")
        finally:
            (copy / mutation.path).write_text(original)
    return {
        **{"path": mutation.path, "line": mutation.line, "before": mutation.before, "after": mutation.after},
        **{"outcome": record.read_text(), "tests": len(chosen), "seconds": round(time.monotonic() - started, 1)},
    }


def _test_files(path: str, copy: Path) -> list[str]:
    """Test files of a file: the mirrored one, those that import it, then those of its folder; small ones first.

    One of the mirrored name in another folder counts as one that imports it.
    """
    source = Path(path)
    module = ".".join(source.with_suffix("").parts)
    mirrored = Path("tests", *source.parts[:-1])
    ranked = []
    for file in sorted((copy / "tests").rglob("test_*.py")):
        local, text = file.relative_to(copy), file.read_text()
        if local == mirrored / f"test_{source.name}":
            rank = 0
        elif (
            f"{module} import" in text
            or f'"{module}"' in text  # as tests/test_constants.py has it
            or f"from {module.rpartition('.')[0]} import {source.stem}" in text
            or file.name == f"test_{source.name}"
        ):
            rank = 1 if local.parent == mirrored else 2
        elif local.parent == mirrored:
            rank = 3
        else:
            continue
        ranked.append((rank, file.stat().st_size, str(local)))
    return [name for _, _, name in sorted(ranked)[:TEST_FILES]]


def _print_outcome(outcome: dict[str, Any]) -> None:
    print(
        f"{outcome['outcome']:9} {outcome['path']}:{outcome['line']}  {outcome['before']}  =>  {outcome['after']}"
        f"  ({outcome['tests']} tests, {outcome['seconds']} s)",
        flush=True,
    )


def _print_table(outcomes: list[dict[str, Any]]) -> None:
    print("\nNot noticed:\n")
    for outcome in outcomes:
        if outcome["outcome"] in MISSED:
            print(f"{outcome['path']}:{outcome['line']} ({outcome['outcome']})")
            print(f"  - {outcome['before']}\n  + {outcome['after']}")
    print("\n| package | mutants | noticed | share |\n|---|---|---|---|")
    for package in (*PACKAGES, "all"):
        counts = Counter(o["outcome"] not in MISSED for o in outcomes if package in ("all", o["path"].split("/")[0]))
        if counts:
            print(f"| {package} | {counts.total()} | {counts[True]} | {100 * counts[True] / counts.total():.0f} % |")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main()
