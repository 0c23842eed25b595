"""Puts stages that take no time in the place of the real ones, in every Python that has this folder on PYTHONPATH.

So commands, workers and Slurm jobs are all real, and only the training is not: `pipelines.stages` is replaced before
anything imports it, and no torch is loaded. What a stage does here can be set by environment variables:

    FAKE_SECONDS   how long it works (default 0), asking all the while whether to stop
    FAKE_FAIL      a word; stage runs whose spec holds it fail
    FAKE_DIE       a word; stage runs whose spec holds it kill their own process
    FAKE_BYTES     the size of its checkpoint (default that of the signature)
"""

import json
import os
import signal
import sys
import time
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec


def run_stage(spec, folder, parent, root, tracking, interrupted=lambda: False, reference=None):
    from pipelines.errors import Interrupted

    text = json.dumps(spec)
    print(f"at work on {spec['signature']}", file=sys.stderr, flush=True)
    if os.environ.get("FAKE_FAIL", "nothing at all") in text:
        raise RuntimeError("told to fail")
    if os.environ.get("FAKE_DIE", "nothing at all") in text:
        print("about to die", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if parent is not None:
        assert (parent / "result.json").exists(), "started before its parent was done"
    if reference is not None:
        assert (reference / "result.json").exists(), "started before what it is matched to was done"
    state = folder / "resume" / "state.json"
    done = json.loads(state.read_text()) if state.exists() else 0.0
    began = time.time()
    with (folder / "ledger.jsonl").open("a") as ledger:
        while True:
            worked = done + time.time() - began
            ledger.write(json.dumps({"step": 1 + int(worked), "tokens_per_second": 100.0, "time": time.time()}) + "\n")
            ledger.flush()
            if worked >= float(os.environ.get("FAKE_SECONDS", 0)):
                break
            if interrupted():
                state.parent.mkdir(exist_ok=True)
                state.write_text(json.dumps(worked))
                raise Interrupted("told to stop")
            time.sleep(0.02)
    if spec["stage"] != "evaluate":
        (folder / "checkpoints" / "step-000001").mkdir(parents=True, exist_ok=True)
        (folder / "checkpoints" / "step-000001" / "weights").write_text(
            spec["signature"] + " " * int(os.environ.get("FAKE_BYTES", 0))
        )
    return {"metrics": {"resumed": done}, "measurements": []}


class _Fake(Loader):
    def create_module(self, spec):
        return None

    def exec_module(self, module):
        module.run_stage = run_stage


class _Finder(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, _Fake()) if name == "pipelines.stages" else None


sys.meta_path.insert(0, _Finder())
