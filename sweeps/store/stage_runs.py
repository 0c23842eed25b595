"""The store: plain folders of stage runs by signature, and what can be read from them.

A stage run is done once its `result.json` exists, which is written last. Files are replaced atomically, so that a
reader never sees half a file; leases (`sweeps.store.leases`) ensure that each folder has one writer, on NFS too.
"""

import contextlib
import errno
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.configuration import STAGES
from pipelines.errors import UserError
from pipelines.files import cannot_write, read_json, read_sealed, remove_leftovers, unreadable, write_json, write_sealed
from pipelines.published import FORMAT, check_format, published_file, read_result, redo
from sweeps.store.leases import Lease, claim, holder

LEDGER = "ledger.jsonl"
TAIL_BYTES = 2**16
"""How much of the end of a ledger is read to see its progress."""
SPEC_KEYS = ("stage", "signature", "version", "config", "parent", "checkpoint", "labels")
"""What every `spec.json` has."""
STATE_FIX = "delete only this file; it says how attempts went, and the next one writes it again"

logger = logging.getLogger("sweeps")


def remove_work(folder: Path) -> None:
    """Remove what only an unfinished stage run needs. The lease goes last: until then nobody else may claim it."""
    for name in ("spec.json", "state.json"):
        remove_leftovers(folder, name)
    for path in folder.glob("work-*"):
        shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(folder / "leases", ignore_errors=True)


def store_path(root: str | Path) -> Path:
    """The absolute path of the folder that `store=root` names; `~` is the user's home."""
    return Path(root).expanduser().absolute()


@dataclass(frozen=True)
class StoredRun:
    """One stage run's folder; each file is read when it is first used."""

    stage: str
    signature: str
    folder: Path

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The configuration, parent and environment; raises `UserError` if the file is missing or was changed."""
        path = self.folder / "spec.json"
        try:
            spec = read_sealed(path, SPEC_KEYS, redo(self.folder))
        except FileNotFoundError as error:
            raise UserError(f"{path}: the file is missing; {redo(self.folder)}") from error
        check_format(path, spec)
        if (spec["stage"], spec["signature"]) != (self.stage, self.signature):
            raise UserError(f"{path}: it is the spec of {spec['stage']}/{spec['signature']}; {redo(self.folder)}")
        return spec

    @cached_property
    def state(self) -> dict[str, Any]:
        """Status and attempts; empty before the first attempt. Raises `UserError` if the file was changed."""
        path = self.folder / "state.json"
        try:
            state = read_sealed(path, ("status", "signature"), STATE_FIX)
        except FileNotFoundError:
            return {}
        if state["signature"] != self.signature:
            raise UserError(f"{path}: it is the state of {state['signature']}; {STATE_FIX}")
        return state

    @property
    def readable_state(self) -> dict[str, Any]:
        """`state`, or nothing where the file is broken: its attempts are lost, and the next one writes it again."""
        try:
            return self.state
        except UserError as error:
            logger.warning("%s", error)
            return {}

    def write_state(self, status: str, **changes: Any) -> None:
        """Replace `state.json` by its content with another status and other changes."""
        own = {"format": FORMAT, "signature": self.signature, "status": status}
        write_sealed(self.folder / "state.json", {"attempts": []} | self.reread().readable_state | changes | own)

    def reread(self) -> "StoredRun":
        """The same stage run, to be read from the disk again."""
        return StoredRun(self.stage, self.signature, self.folder)

    @cached_property
    def result(self) -> dict[str, Any] | None:
        """Metrics, measurements and file hashes of a finished stage run; None for others.

        Raises `UserError` if the file was changed.
        """
        try:
            return read_result(self.folder)
        except FileNotFoundError:
            return None

    @property
    def readable_result(self) -> dict[str, Any] | None:
        """`result`, or None with a warning where the file is broken."""
        try:
            return self.result
        except UserError as error:
            logger.warning("%s", error)
            return None

    @property
    def is_done(self) -> bool:
        """Whether the stage run is finished, by a look at the disk; a folder that cannot be entered is not."""
        return os.access(self.folder / "result.json", os.F_OK)

    @property
    def status(self) -> str:
        """`done`, `failed`, `cancelled`, `queued`, `running`, `interrupted` (its writer is gone) or `missing`."""
        if self.is_done:
            return "done"
        if not (state := self.readable_state):
            return "missing"
        status = str(state["status"])
        if status in ("running", "interrupted"):
            return "running" if self.is_held() else "interrupted"
        return status

    @property
    def is_planned(self) -> bool:
        """Whether the folder may have a `spec.json`: one that cannot be entered may."""
        try:
            return "spec.json" in os.listdir(self.folder)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True

    def is_held(self) -> bool:
        """Whether a live process holds the lease on the folder."""
        lease = holder(self.folder)
        return lease is not None and lease.alive

    @property
    def needs(self) -> set[str]:
        """Signatures of the stage runs whose models it loads, as its `spec.json` says."""
        reference = self.spec["config"].get("variant", {}).get("reference")
        return {identity["signature"] for identity in (self.spec["parent"], reference) if identity}

    def claim(self) -> Lease | None:
        """A lease on the folder, or None while another process holds one.

        Raises `UserError` if this user may not write to the folder, or to what an earlier attempt left in it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lease = claim(self.folder)
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        # A folder of another user's attempt can be renamed where both may write, and still be closed inside.
        for path in (lease.work, *lease.work.rglob("*")) if lease else ():
            if path.is_dir() and not os.access(path, os.R_OK | os.W_OK | os.X_OK):
                assert lease is not None
                lease.release()
                raise cannot_write(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
        return lease

    def tidy(self) -> None:
        """Finish what the worker of a finished stage run left undone: it may have been killed once it had published."""
        try:
            if not (self.folder / "leases").exists() or (lease := claim(self.folder)) is None:
                return
        except OSError:  # another user's folder, who will tidy it
            return
        with lease:
            state = self.reread().readable_state
            if state.get("status") != "done":
                ended = (self.folder / "result.json").stat().st_mtime
                for attempt in state.get("attempts", [])[-1:]:
                    attempt.setdefault("ended", ended)
                self.write_state("done", attempts=state.get("attempts", []))
            remove_work(self.folder)

    @property
    def work(self) -> Path:
        """The folder of its files: its own once it is done, before that the one of its newest attempt."""
        if self.is_done:
            return self.folder
        return max(self.folder.glob("work-*"), default=self.folder)

    def published(self, name: str) -> Path | None:
        """The path of a file that a finished stage run has published, or None if it has no such file.

        Raises `UserError` if the file, or `result.json`, is not what was published.
        """
        return published_file(self.folder, name, self.result["files"]) if self.result else None

    def ledger(self) -> list[dict[str, Any]]:
        """Every metric row in order, without a last line that a kill cut short.

        Raises `UserError`, naming the file, if it is not the one that was published, or has another broken line.
        """
        path = self.published(LEDGER) if self.is_done else self.work / LEDGER
        if path is None or not path.exists():
            return []
        rows = []
        lines = path.read_text(errors="replace").split("\n")
        for number, line in enumerate(lines[:-1], start=1):  # a line is complete once it has its newline
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{path}: line {number} is not readable JSON ({error.msg}); {redo(self.folder)}"
                ) from error
        return rows

    def readable_ledger(self) -> list[dict[str, Any]]:
        """`ledger()`, or nothing with a warning where the file is broken."""
        try:
            return self.ledger()
        except UserError as error:
            logger.warning("%s", error)
            return []

    def newest_rows(self) -> list[dict[str, Any]]:
        """The newest complete ledger rows in order, read from the end of the file: cheap enough to poll."""
        try:
            with (self.work / LEDGER).open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - TAIL_BYTES))
                lines = file.read().split(b"\n")[:-1]
        except OSError:
            return []
        rows = []
        for line in lines:
            with contextlib.suppress(ValueError):  # the first line is cut if the file is longer
                rows.append(json.loads(line))
        return [row for row in rows if isinstance(row, dict)]

    def last_row(self) -> dict[str, Any]:
        """The newest complete ledger row; empty before the first."""
        return (self.newest_rows() or [{}])[-1]

    def time_left(self, steps: int) -> float | None:
        """Seconds to the last of `steps` at the pace of the newest attempt; None if it has no pace yet."""
        attempts = self.readable_state.get("attempts")
        if not attempts:
            return None
        started = attempts[-1]["started"]
        # The pace is measured between the first and the last step of this attempt that the end of the ledger has.
        newest = (row for row in self.newest_rows() if "step" in row)
        rows = [row for row in newest if row.get("time", 0.0) >= started]  # the others are of earlier attempts
        if len(rows) == 1 and len(attempts) == 1:
            rows.insert(0, {"step": 0, "time": started})  # the attempt itself gives the time of step 0
        done = rows[-1]["step"] - rows[0]["step"] if rows else 0
        if done <= 0:
            return None
        pace = (rows[-1]["time"] - rows[0]["time"]) / done
        return max(0.0, pace * (steps - rows[-1]["step"]) - (time.time() - rows[-1]["time"]))


@dataclass(frozen=True)
class Store:
    """The folder of stage runs."""

    root: Path

    @classmethod
    def open(cls, root: str | Path) -> "Store":
        """The store at `root`; raises `UserError` if `root` is not a store or has another format."""
        path = store_path(root)
        marker = path / "STORE.json"
        try:
            if not path.is_dir():
                raise UserError(f"store={root}: the folder does not exist; run a sweep first, or name another store")
            os.scandir(path).close()
            is_store = marker.exists()
        except OSError as error:
            raise unreadable(path, error) from error
        if not is_store:
            raise UserError(
                f"store={root}: the folder is not a store (it has no STORE.json); name a store or an empty folder"
            )
        store_format = read_json(
            marker, (), f'write {{"format": {FORMAT}}} into it again if this is a store, or name another folder'
        ).get("format")
        if store_format != FORMAT:
            raise UserError(
                f"store={root}: its format is {store_format!r} and this version reads {FORMAT}; "
                "use the version of shaping that wrote it, or another store"
            )
        return cls(path)

    @classmethod
    def create(cls, root: str | Path) -> "Store":
        """The store at `root`, created if the folder is new or empty; raises `UserError` if it cannot be one."""
        path = store_path(root)
        try:
            # A link may name a folder that does not exist yet.
            path.resolve().mkdir(parents=True, exist_ok=True)
            # A temporary file means that another command is creating the store at this moment.
            is_new = all(entry.name.startswith(".STORE.json") for entry in path.iterdir())
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(f"store={root}: it is a file; name a folder") from error
        except RuntimeError as error:
            raise UserError(f"store={root}: it is a link to itself; name a folder") from error
        except OSError as error:
            raise cannot_write(path, error) from error
        if is_new:
            write_json(path / "STORE.json", {"format": FORMAT})
        store = cls.open(path)
        if not os.access(path, os.W_OK):
            raise cannot_write(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
        return store

    def run(self, stage: str, signature: str) -> StoredRun:
        """The stage run of that signature, whether its folder exists or not."""
        return StoredRun(stage, signature, self.root / stage / signature)

    def folders(self, unlisted: list[UserError]) -> Iterator[StoredRun]:
        """Every folder of a stage run, ordered by stage and signature, whatever can be read of it.

        Adds to `unlisted` an error for the folder of a stage that cannot be listed.
        """
        for stage in STAGES:
            folder = self.root / stage
            try:
                names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
            except FileNotFoundError:
                continue
            except OSError as error:
                unlisted.append(unreadable(folder, error))
                continue
            yield from (StoredRun(stage, name, folder / name) for name in names)

    def runs(self) -> Iterator[StoredRun]:
        """The stage runs whose `spec.json` can be read, ordered; a broken one is named in a warning."""
        errors: list[UserError] = []
        for run in self.folders(errors):
            try:
                if run.is_planned:
                    _ = run.spec
                    yield run
            except UserError as error:
                errors.append(error)
        for problem in errors:
            logger.warning("%s", problem)

    @property
    def cache(self) -> Path:
        """Where tokenizers and tokens are kept by content hash."""
        return self.root / "cache"
