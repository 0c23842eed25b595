"""Sending what W&B runs wrote offline, and the stage runs' files as artifacts with their lineage.

Everything goes through the real client: `wandb sync` for runs, which marks each run that it has sent, so that the same
command goes on where it was stopped; `wandb.Artifact` for files, of which `wandb/artifacts.json` in the store keeps a
list. Nothing here is needed by training, and nothing here changes a stage run.
"""

import hashlib
import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipelines.configuration import STAGES
from pipelines.errors import StageFailure
from pipelines.files import read_json, write_json
from sweeps.store.stage_runs import Store, StoredRun

BATCH = 25
"""Runs that one `wandb sync` is given: few enough that a broken connection costs little."""

SMALL = ("spec.json", "result.json", "ledger.jsonl", "samples.jsonl", "samples.jsonl.gz")
"""Files of a stage run that an artifact always holds; checkpoints are large and asked for."""


@dataclass
class Sent:
    """What a synchronisation did."""

    already: int = 0
    """Runs that an earlier call had sent."""
    runs: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    artifacts: list[str] = field(default_factory=list)
    error: str = ""
    """What the client said last of a failure."""


def offline_runs(store: Store) -> list[Path]:
    """Folders of the runs that were written offline, oldest first."""
    return sorted((store.root / "wandb").glob("offline-run-*"))


def is_sent(folder: Path) -> bool:
    """Whether the client marked the run as sent."""
    return any(folder.glob("*.synced"))


def send_runs(store: Store, project: str | None, entity: str | None, say: Callable[[str], None]) -> Sent:
    """Send every offline run that was not sent before; stops at the first batch of which nothing arrived.

    Raises `StageFailure` where there is something to send and no server.
    """
    sent = Sent()
    waiting = []
    for folder in offline_runs(store):
        if is_sent(folder):
            sent.already += 1
        else:
            waiting.append(folder)
    if waiting:
        check_server()
    target = [*(["--project", project] if project else []), *(["--entity", entity] if entity else [])]
    for start in range(0, len(waiting), BATCH):
        batch = waiting[start : start + BATCH]
        done = subprocess.run(
            [sys.executable, "-m", "wandb", "sync", "--yes", *target, *map(str, batch)],
            env={**os.environ, "WANDB_ERROR_REPORTING": "false", "WANDB_DIR": str(store.root)},  # its log too
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        arrived = [folder for folder in batch if is_sent(folder)]
        sent.runs += [folder.name for folder in arrived]
        sent.failed += [folder.name for folder in batch if folder not in arrived]
        say(f"{len(sent.runs)} of {len(waiting)} runs sent")
        if len(arrived) < len(batch):
            sent.error = _last_line(done.stderr or done.stdout)
        if not arrived:
            sent.failed += [folder.name for folder in waiting[start + BATCH :]]
            break
    return sent


def check_server() -> None:
    """Raise `StageFailure` where nobody listens at the server's address: the client would try for many minutes.

    Behind a proxy the address cannot be tried from here, so the client is left to find out.
    """
    address = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    parts = urlsplit(address)
    if urllib.request.getproxies().get(parts.scheme) and not urllib.request.proxy_bypass(parts.netloc):
        return
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=10).close()
    except OSError as error:
        raise StageFailure(
            f"W&B at {address}: it does not answer ({error.strerror or error}); the same command goes on when it does"
        ) from error


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("wandb: ") if lines else "the client said nothing"


def send_artifacts(
    store: Store, project: str, entity: str | None, large: bool, say: Callable[[str], None]
) -> list[str]:
    """Send finished stage runs as artifacts, each using its parent's, pre-training using its data; returns their names.

    `large` adds checkpoints. What `wandb/artifacts.json` lists for this project was sent before and is left out. Raises
    `StageFailure` where the server cannot be reached.
    """
    import wandb

    check_server()
    path = store.root / "wandb" / "artifacts.json"
    way_out = "delete this file alone; what was sent is sent again"
    record = read_json(path, (), way_out) if path.exists() else {}
    key = f"{entity or ''}/{project}{'+checkpoints' if large else ''}"
    listed: dict[str, str] = record.setdefault(key, {})
    path.parent.mkdir(exist_ok=True)
    names = []
    for run in _finished(store):
        name = f"{run.stage}-{run.signature}"
        if name in listed:
            continue
        try:
            with wandb.init(
                project=project,
                entity=entity,
                id=f"files-{run.signature}",
                name=f"files of {name}",
                job_type=f"files-{run.stage}",
                dir=store.root,
                resume="allow",
                config={"stage_run": run.signature, **run.spec["labels"]},
                settings=wandb.Settings(console="off", silent=True, x_disable_stats=True, init_timeout=30),
            ) as active:
                for used in _inputs(run, listed):
                    active.use_artifact(used)
                if run.stage == "pretrain" and not run.spec["parent"]:
                    active.use_artifact(_dataset(wandb, run))
                active.log_artifact(_artifact(wandb, run, name, large)).wait()
        except (wandb.Error, OSError, ValueError) as error:  # ValueError: an answer that the client cannot read
            raise StageFailure(
                f"artifact {name}: W&B did not take it ({' '.join(str(error).split())}); the same command goes on"
            ) from error
        names.append(name)
        listed[name] = f"{name}:latest"
        write_json(path, record)
        say(f"{name} sent")
    return names


def _finished(store: Store) -> Iterator[StoredRun]:
    """Finished stage runs, parents first."""
    runs = sorted(store.runs(), key=lambda run: (STAGES.index(run.stage), run.signature))
    return (run for run in runs if run.result is not None)


def _inputs(run: StoredRun, listed: dict[str, str]) -> list[str]:
    parent = run.spec["parent"]
    name = f"{parent['stage']}-{parent['signature']}" if parent else ""
    return [listed[name]] if name in listed else []


def _dataset(wandb: Any, run: StoredRun) -> Any:
    """The data that a pre-training read, by its configuration: the text itself comes from installed packages."""
    config = {name: run.spec["config"].get(name) for name in ("data", "text_versions")}
    text = json.dumps(config, indent=1, sort_keys=True)
    artifact = wandb.Artifact(f"data-{hashlib.sha256(text.encode()).hexdigest()[:16]}", type="dataset", metadata=config)
    with artifact.new_file("data.json") as file:
        file.write(text)
    return artifact


def _artifact(wandb: Any, run: StoredRun, name: str, large: bool) -> Any:
    kind = "result" if run.stage == "evaluate" else "stage-run"
    artifact = wandb.Artifact(name, type=kind, metadata={**run.spec["labels"], "signature": run.signature})
    for file in SMALL:
        if (run.folder / file).exists():
            artifact.add_file(str(run.folder / file))
    if large and (run.folder / "checkpoints").is_dir():
        artifact.add_dir(str(run.folder / "checkpoints"), name="checkpoints")
    return artifact
