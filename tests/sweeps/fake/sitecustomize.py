"""Replaces the stages by ones that take no time, in every Python that has this folder on its PYTHONPATH.

So commands, workers and Slurm jobs are real, and only the training is not: `pipelines.stages` is replaced before
anything imports it, and torch is not loaded. Environment variables control what a stage does:

    FAKE_SECONDS   how long it runs (default 0); it checks all the time whether to stop
    FAKE_FAIL      a string; stage runs whose spec contains it fail
    FAKE_FULL      a string; stage runs whose spec contains it find the disk full when they write their ledger
    FAKE_DIE       a string; stage runs whose spec contains it kill their own process
    FAKE_BYTES     size of its checkpoint (by default that of the signature)
    FAKE_MEMORY    bytes of memory that it fills first

The metric `cores` is the number of cores that it may use.
"""

import dataclasses
import errno
import json
import os
import signal
import sys
import time
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec


def run_stage(spec, *, folder, parent, reference, interrupted, **_):
    text = json.dumps(spec)
    print(f"working on {spec['signature']}", file=sys.stderr, flush=True)
    if os.environ.get("FAKE_FAIL", "nothing at all") in text:
        raise RuntimeError("asked to fail")
    if os.environ.get("FAKE_FULL", "nothing at all") in text:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "ledger.jsonl"))
    if os.environ.get("FAKE_DIE", "nothing at all") in text:
        print("about to die", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if parent is not None:
        assert (parent / "result.json").exists(), "started before its parent was done"
    if reference is not None:
        assert (reference / "result.json").exists(), "started before its reference was done"
    memory = bytearray(int(os.environ.get("FAKE_MEMORY", 0)))
    for page in range(0, len(memory), 4096):
        memory[page] = 1
    seconds_before = work(folder, interrupted)
    for step in milestones(spec):
        checkpoint = folder / "checkpoints" / f"step-{step:06d}"
        checkpoint.mkdir(parents=True, exist_ok=True)
        (checkpoint / "weights").write_text(spec["signature"] + " " * int(os.environ.get("FAKE_BYTES", 0)))
    return {
        "metrics": {"resumed": seconds_before, "cores": len(os.sched_getaffinity(0))},
        "measurements": [],
    }


def milestones(spec):
    """The steps at which the stage would save checkpoints."""
    from pipelines.configuration.budgets import MidtrainConfig, PretrainConfig
    from pipelines.configuration.grpo import GRPOConfig

    kinds = {"pretrain": PretrainConfig, "midtrain": MidtrainConfig, "grpo": GRPOConfig}
    kind = kinds.get(spec["stage"])
    known = {field.name for field in dataclasses.fields(kind)} if kind else ()
    content = {key: value for key, value in spec["config"].get(spec["stage"], {}).items() if key in known}
    return kind(**content).checkpoints() if kind else []


def work(folder, interrupted):
    """Let FAKE_SECONDS pass; returns how many of them an earlier attempt had done."""
    from pipelines.errors import Interrupted

    state = folder / "resume" / "state.json"
    seconds_before = json.loads(state.read_text()) if state.exists() else 0.0
    started = time.time()
    with (folder / "ledger.jsonl").open("a") as ledger:
        while True:
            worked = seconds_before + time.time() - started
            row = {"step": 1 + int(worked), "tokens_per_second": 100.0, "time": time.time()}
            ledger.write(json.dumps(row) + "\n")
            ledger.flush()
            if worked >= float(os.environ.get("FAKE_SECONDS", 0)):
                return seconds_before
            if interrupted():
                state.parent.mkdir(exist_ok=True)
                state.write_text(json.dumps(worked))
                raise Interrupted("asked to stop")
            time.sleep(0.02)


class _Fake(Loader):
    def create_module(self, spec):
        return None

    def exec_module(self, module):
        module.run_stage = run_stage


class _Finder(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, _Fake()) if name == "pipelines.stages" else None


sys.meta_path.insert(0, _Finder())
