"""One stage run inside a worker: take its folder, do the work, publish.

The worker's process is forked from one that has imported torch, so nothing heavy is imported here at load.
"""

import hashlib
import os
import platform
import shutil
import socket
import time
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any

from submitit import JobEnvironment

from pipelines.cell import TrackingConfig
from sweeps.store import FORMAT, Store, locked, write_json

ENVIRONMENT = ("shaping", "torch", "transformers", "lightning", "tokenizers", "numpy")


def perform(root: str, spec: dict[str, Any], tracking: TrackingConfig) -> None:
    """Run one stage run to its end, in a submitit job, and publish it; a finished one is left as it is.

    Whatever goes wrong is recorded in `state.json` before it is raised: a status of `failed` with the error, or of
    `interrupted` when the worker was told to stop.
    """
    from pipelines.stages import run_stage

    store = Store.open(root)
    run = store.run(spec["stage"], spec["signature"])
    run.folder.mkdir(parents=True, exist_ok=True)
    with locked(run.folder):
        if (run.folder / "result.json").exists():
            return
        shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)  # what an attempt that was killed left
        write_json(run.folder / "spec.json", spec | {"environment": _environment()})
        attempt: dict[str, Any] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": time.time(),
            "log": str(JobEnvironment().paths.stderr),
        }
        attempts = [*run.state.get("attempts", []), attempt]

        def record(status: str) -> None:
            write_json(run.folder / "state.json", {"format": FORMAT, "status": status, "attempts": attempts})

        record("running")
        parent = spec["parent"] and store.run(spec["parent"]["stage"], spec["parent"]["signature"]).folder
        try:
            outcome = run_stage(spec, run.folder, parent, store.root, tracking)
            attempt["ended"] = time.time()
            write_json(
                run.folder / "result.json",
                {
                    "format": FORMAT,
                    "stage": run.stage,
                    "signature": run.signature,
                    "seconds": attempt["ended"] - attempt["started"],
                    **outcome,
                    "files": _hashes(run.folder),
                },
            )
            record("done")
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
            attempt["ended"] = time.time()
            attempt["error"] = "stopped" if interrupted else f"{type(error).__name__}: {error}"
            attempt["traceback"] = traceback.format_exc()
            record("interrupted" if interrupted else "failed")
            raise


def _environment() -> dict[str, str]:
    return {name: version(name) for name in ENVIRONMENT} | {
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def _hashes(folder: Path) -> dict[str, str]:
    """sha256 of every published file; the ones that change after publication are left out."""
    changing = {"state.json", "lock", "result.json"}
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in changing)
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
