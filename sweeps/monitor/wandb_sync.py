"""Sends W&B runs that were written offline, their evaluations, and files of stage runs as artifacts with lineage.

All use W&B's client: `wandb sync` for runs, which marks each run that it has sent, so that the same command resumes;
`wandb.Artifact` for files, which `wandb/artifacts.json` in the store lists. Training does not need this, and this
changes no stage run.
"""

import hashlib
import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipelines.configuration import STAGES
from pipelines.configuration.tracking import TrackingConfig
from pipelines.errors import StageFailure
from pipelines.files import read_sealed, write_sealed
from pipelines.tracking.tracker import named
from pipelines.tracking.wandb_run import TRACKING, run_id, send_evaluations
from sweeps.store.stage_runs import Store, StoredRun

if TYPE_CHECKING:
    import wandb

BATCH = 25
"""Runs per call of `wandb sync`: few, so that a broken connection costs little."""

SMALL_FILES = ("spec.json", "result.json", "ledger.jsonl", "samples.jsonl", "samples.jsonl.gz")
"""Files of a stage run that an artifact always contains; checkpoints are large and optional."""


@dataclass
class Synced:
    """What a call of `send_runs` did."""

    already: int = 0
    """Number of runs that an earlier call had sent."""
    runs: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    error: str = ""
    """The last line that the client printed for a failure."""


def offline_runs(store: Store) -> list[Path]:
    """Folders of the runs that were written offline, oldest first."""
    return _run_folders(store, "offline-run-*")


def _run_folders(store: Store, pattern: str) -> list[Path]:
    """Folders of W&B's runs, in the store and in WANDB_DIR, oldest first."""
    folders = {store.root.resolve(), Path(os.environ.get("WANDB_DIR") or store.root).resolve()}
    return sorted((path for folder in folders for path in (folder / "wandb").glob(pattern)), key=lambda path: path.name)


def is_sent(folder: Path) -> bool:
    """Whether the client marked the run as sent."""
    return any(folder.glob("*.synced"))


def send_runs(store: Store, *, project: str | None, entity: str | None, report: Callable[[str], None]) -> Synced:
    """Send every offline run that was not sent before; stops after the first batch of which no run arrived.

    `report` receives a line after each batch. Raises `StageFailure` if there is something to send and no server.
    """
    runs = offline_runs(store)
    waiting = [folder for folder in runs if not is_sent(folder)]
    synced = Synced(already=len(runs) - len(waiting))
    if waiting:
        check_server()
    target = [*(["--project", project] if project else []), *(["--entity", entity] if entity else [])]
    for start in range(0, len(waiting), BATCH):
        batch = waiting[start : start + BATCH]
        # With -P, the folder `wandb` in the working directory does not shadow the package.
        finished = subprocess.run(
            [sys.executable, "-P", "-m", "wandb", "sync", "--yes", *target, *map(str, batch)],
            env={**os.environ, "WANDB_ERROR_REPORTING": "false", "WANDB_DIR": str(store.root)},  # for its log
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        # The client's exit code does not say which runs arrived; its marks do.
        arrived = [folder for folder in batch if is_sent(folder)]
        synced.runs += [folder.name for folder in arrived]
        synced.failed += [folder.name for folder in batch if folder not in arrived]
        report(f"{len(synced.runs)} of {len(waiting)} runs sent")
        if len(arrived) < len(batch):
            synced.error = _last_line(finished.stderr or finished.stdout)
        if not arrived:
            synced.failed += [folder.name for folder in waiting[start + BATCH :]]
            break
    return synced


def add_evaluations(
    store: Store, *, project: str | None, entity: str | None, report: Callable[[str], None]
) -> list[str]:
    """Add finished evaluations to the W&B runs of the stage runs that they measure; returns their signatures.

    What `wandb/evaluations.json` lists was added before and is skipped, as is what the run itself has already.
    """
    path = store.root / "wandb" / "evaluations.json"
    listed: dict[str, list[str]] = read_sealed(path) if path.exists() else {}
    added: list[str] = []
    for signature, tracking in _tracked(store, project=project, entity=entity).items():
        done = listed.setdefault(f"{tracking.entity or ''}/{tracking.project}", [])
        evaluations = [
            run
            for run in store.runs()
            if run.stage == "evaluate" and run.readable_result is not None and run.signature not in done
            and run.spec["parent"]["signature"] == signature
        ]  # fmt: skip
        if not evaluations:
            continue
        check_server()
        try:
            send_evaluations([(run.spec, _values(run)) for run in evaluations], store.root, tracking)
        except Exception as error:  # the client raises errors of many kinds
            raise StageFailure(
                f"W&B run {signature}: it did not accept its evaluations ({' '.join(str(error).split())}); run the "
                "same command again to resume"
            ) from error
        done += [run.signature for run in evaluations]
        write_sealed(path, listed)
        added += [run.signature for run in evaluations]
        report(f"{len(added)} evaluations added")
    return added


def _tracked(store: Store, *, project: str | None, entity: str | None) -> dict[str, TrackingConfig]:
    """The W&B runs of stage runs, by signature: where each is in W&B."""
    runs = {}
    for folder in _run_folders(store, "*run-*-*"):
        if (folder / TRACKING).exists():
            tracking = TrackingConfig(**read_sealed(folder / TRACKING))
            chosen = replace(
                tracking, mode="online", project=project or tracking.project, entity=entity or tracking.entity
            )
            runs[run_id(folder)] = chosen
    return runs


def _values(run: StoredRun) -> dict[str, Any]:
    """What an evaluation's ledger has, under the names in W&B."""
    values: dict[str, Any] = {}
    for row in run.ledger():
        values |= named(run.spec, row)
    return values


def check_server() -> None:
    """Raise `StageFailure` if no server listens at the address; the client would retry for many minutes.

    Behind a proxy the address is not checked, since it cannot be reached directly.
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
            f"W&B at {address}: it does not answer ({error.strerror or error}); run the same command again when it does"
        ) from error


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("wandb: ") if lines else "the client printed nothing"


def send_artifacts(
    store: Store, *, project: str, entity: str | None, checkpoints: bool, report: Callable[[str], None]
) -> list[str]:
    """Send finished stage runs as artifacts linked to their parents', pre-training to its data; returns the names.

    `checkpoints` adds those. What `wandb/artifacts.json` lists for this project was sent before and is skipped;
    `report` receives a line for each artifact. Raises `StageFailure` if the server cannot be reached.
    """
    check_server()
    path = store.root / "wandb" / "artifacts.json"
    fix = "delete only this file; everything is sent again"
    record = read_sealed(path, (), fix) if path.exists() else {}
    key = f"{entity or ''}/{project}{'+checkpoints' if checkpoints else ''}"
    listed: dict[str, str] = record.setdefault(key, {})
    path.parent.mkdir(exist_ok=True)
    names = []
    for run in _finished(store):
        name = f"{run.stage}-{run.signature}"
        # The list is written after each artifact, so that an interrupted call resumes.
        if name not in listed:
            _send_artifact(store, run, listed, project=project, entity=entity, checkpoints=checkpoints)
            names.append(name)
            listed[name] = f"{name}:latest"
            write_sealed(path, record)
            report(f"{name} sent")
    return names


def _send_artifact(
    store: Store, run: StoredRun, listed: dict[str, str], *, project: str, entity: str | None, checkpoints: bool
) -> None:
    """Send one stage run as an artifact of a W&B run that uses the artifacts of its inputs."""
    import wandb

    name = f"{run.stage}-{run.signature}"
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
            for artifact in _inputs(run, listed):
                active.use_artifact(artifact)
            if run.stage == "pretrain" and not run.spec["parent"]:
                active.use_artifact(_dataset(run))
            active.log_artifact(_artifact(run, name, checkpoints=checkpoints)).wait()
    except (wandb.Error, OSError, ValueError) as error:  # ValueError: an answer that the client cannot read
        message = " ".join(str(error).split())
        raise StageFailure(
            f"artifact {name}: W&B did not accept it ({message}); run the same command again to resume"
        ) from error


def _finished(store: Store) -> Iterator[StoredRun]:
    """Finished stage runs, parents first."""
    runs = sorted(store.runs(), key=lambda run: (STAGES.index(run.stage), run.signature))
    return (run for run in runs if run.readable_result is not None)


def _inputs(run: StoredRun, listed: dict[str, str]) -> list[str]:
    """The artifact of the parent, if it was sent."""
    parent = run.spec["parent"]
    name = f"{parent['stage']}-{parent['signature']}" if parent else ""
    return [listed[name]] if name in listed else []


def _dataset(run: StoredRun) -> "wandb.Artifact":
    """The data of a pre-training, described by its configuration; the text itself is in installed packages."""
    import wandb

    config = {name: run.spec["config"].get(name) for name in ("data", "text_versions")}
    text = json.dumps(config, indent=1, sort_keys=True)
    artifact = wandb.Artifact(f"data-{hashlib.sha256(text.encode()).hexdigest()[:16]}", type="dataset", metadata=config)
    with artifact.new_file("data.json") as file:
        file.write(text)
    return artifact


def _artifact(run: StoredRun, name: str, *, checkpoints: bool) -> "wandb.Artifact":
    """The files of a stage run."""
    import wandb

    artifact = wandb.Artifact(
        name,
        type="result" if run.stage == "evaluate" else "stage-run",
        metadata={**run.spec["labels"], "signature": run.signature},
    )
    for file in SMALL_FILES:
        if file == "result.json" or run.published(file):
            artifact.add_file(str(run.folder / file))
    if checkpoints and (run.folder / "checkpoints").is_dir():
        artifact.add_dir(str(run.folder / "checkpoints"), name="checkpoints")
    return artifact
