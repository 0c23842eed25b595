"""Shared fixtures: the commands, and a study so small that all of its stages train in seconds."""

import gc
import logging
import os
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from pipelines.logs import PACKAGES
from tests.in_process import in_process

os.environ.setdefault("OMP_NUM_THREADS", "1")  # test files run in parallel; torch reads it at import
os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels run on the CPU; Triton reads it at import
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a hub that cannot be reached is asked again for a minute

# Background jobs of a shell ignore Ctrl-C, and those of nohup a closed terminal; what tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


# Imported objects stay alive: collecting garbage among them would take a fifth of the time of imports and tests.
gc.disable()


def pytest_collection_finish() -> None:
    """Collect garbage from here on, but only among objects that tests create."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Let frozen objects be collected: some libraries complain about those that are alive at exit."""
    gc.unfreeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files with many slow tests first, so that none of them is the last one running."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """The warnings of the packages, whether or not a command has set up logging in this process."""
    handler = _Kept(logging.WARNING)
    loggers = [logging.getLogger(name) for name in PACKAGES]
    for logger in loggers:
        logger.addHandler(handler)
    yield handler.lines
    for logger in loggers:
        logger.removeHandler(handler)


class _Kept(logging.Handler):
    """Keeps the text of what is logged."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


SMALL = [
    "data.text=[networkx]",
    "data.tasks_per_family=300",
    "data.vocab_size=300",
    "data.top_k=8",
    "model.layers=1",
    "model.d_model=16",
    "model.ffn=32",
    "model.heads=2",
    "model.kv_heads=1",
    "model.head_dim=8",
    "pretrain.tokens=8192",
    "pretrain.warmup_steps=2",
    "pretrain.milestones=2",
    "midtrain.tokens=4096",
    "midtrain.milestones=1",
    "grpo.steps=2",
    "grpo.prompts=4",
    "grpo.samples=4",
    "grpo.max_new_tokens=8",
    "grpo.milestones=1",
    "evaluation.max_new_tokens=8",
    "evaluation.benchmarks.Docstrings.items=8",
    *(
        f"evaluation.benchmarks.{name}.items=4"
        for name in ("Modules", "Continuations", "Boolean", "Order", "Chain-3", "Chain-4", "Chain-5", "Python")
    ),
]
"""Overrides that make the nano study tiny: every stage and every benchmark, nothing learned."""

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def shaping_run() -> Command:
    """Runs `shaping-run`, or the command of another module, with the given arguments; output is captured."""

    def run(*arguments: str, cwd: Path, module: str = "sweeps.commands.run") -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if k != "SHAPING_DEBUG"}
        return in_process(module, *arguments, cwd=cwd, environment=environment)

    return run


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory, shaping_run: Command) -> Path:
    """A folder with a `store` of the tiny study, trained for two objectives; W&B ran offline.

    It is trained once for all test processes; each gets a copy.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    trained = shared / "trained-study"
    with FileLock(shared / "trained-study.lock"):
        if not trained.exists():
            folder = tmp_path_factory.mktemp("training")
            finished = shaping_run("-m", "objective=ce,precision", *SMALL, cwd=folder)
            assert finished.returncode == 0, finished.stdout + finished.stderr
            folder.rename(trained)
    return shutil.copytree(trained, tmp_path_factory.mktemp("copy") / "study")
