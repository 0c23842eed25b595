"""The store: plain folders of stage runs by signature, and what can be read from them.

A stage run is done once its `result.json` exists, which is written last. Files are replaced atomically, so that a
reader never sees half a file; leases (`sweeps.store.leases`) ensure that each folder has one writer, on NFS too.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.files import cannot_write, read_json, remove_leftovers, write_json
from sweeps.store.leases import claim, holder

FORMAT = 1
"""Version of the store's layout, in `STORE.json` and in every file of it."""
TAIL_BYTES = 2**16
"""How much of the end of a ledger is read to see its progress."""


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
        """The configuration, parent and environment; raises `UserError` if the file is corrupt."""
        return self._read("spec.json", ("stage", "version", "config", "parent", "checkpoint", "labels"))

    @cached_property
    def state(self) -> dict[str, Any]:
        """Status and attempts; empty before the first attempt."""
        return self._read("state.json", ("status",)) if (self.folder / "state.json").exists() else {}

    def reread(self) -> "StoredRun":
        """The same stage run, to be read from the disk again."""
        return StoredRun(self.stage, self.signature, self.folder)

    @cached_property
    def result(self) -> dict[str, Any] | None:
        """Metrics, measurements and file hashes of a finished stage run; None for others."""
        return self._read("result.json", ("seconds",)) if (self.folder / "result.json").exists() else None

    def _read(self, name: str, keys: Iterable[str]) -> dict[str, Any]:
        return read_json(self.folder / name, keys, f"delete the folder {self.folder} and run the sweep again")

    @property
    def status(self) -> str:
        """`done`, `failed`, `cancelled`, `queued`, `running`, `interrupted` (its writer is gone) or `missing`."""
        if (self.folder / "result.json").exists():
            return "done"
        if not self.state:
            return "missing"
        status = str(self.state["status"])
        if status in ("running", "interrupted"):
            return "running" if self.is_held() else "interrupted"
        return status

    def is_held(self) -> bool:
        """Whether a live process holds the lease on the folder."""
        lease = holder(self.folder)
        return lease is not None and lease.alive

    def tidy(self) -> None:
        """Finish what the worker of a finished stage run left undone: it may have been killed once it had published."""
        if not (self.folder / "leases").exists() or (lease := claim(self.folder)) is None:
            return
        with lease:
            state = self.reread().state
            if state.get("status") != "done":
                ended = (self.folder / "result.json").stat().st_mtime
                for attempt in state.get("attempts", [])[-1:]:
                    attempt.setdefault("ended", ended)
                write_json(self.folder / "state.json", {"format": FORMAT, "attempts": []} | state | {"status": "done"})
            remove_work(self.folder)

    @property
    def work(self) -> Path:
        """The folder of its files: its own once it is done, before that the one of its newest attempt."""
        if (self.folder / "result.json").exists():
            return self.folder
        return max(self.folder.glob("work-*"), default=self.folder)

    def ledger(self) -> list[dict[str, Any]]:
        """Every metric row in order, without a last line that a kill cut short.

        Raises `UserError`, naming file and line, for any other broken line.
        """
        path = self.work / "ledger.jsonl"
        if not path.exists():
            return []
        rows = []
        lines = path.read_text(errors="replace").split("\n")
        for number, line in enumerate(lines[:-1], start=1):  # a line is complete once it has its newline
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{path}: line {number} is not readable JSON ({error.msg}); "
                    f"delete the folder {path.parent} and run the sweep again"
                ) from error
        return rows

    def newest_rows(self) -> list[dict[str, Any]]:
        """The newest complete ledger rows in order, read from the end of the file: cheap enough to poll."""
        try:
            with (self.work / "ledger.jsonl").open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - TAIL_BYTES))
                lines = file.read().split(b"\n")[:-1]
        except FileNotFoundError:
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
        attempts = self.state.get("attempts")
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
        if not path.is_dir():
            raise UserError(f"store={root}: the folder does not exist; run a sweep first, or name another store")
        marker = path / "STORE.json"
        if not marker.exists():
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
            path.mkdir(parents=True, exist_ok=True)
            # A temporary file means that another command is creating the store at this moment.
            is_new = all(entry.name.startswith(".STORE.json") for entry in path.iterdir())
        except FileExistsError as error:
            raise UserError(f"store={root}: it is a file; name a folder") from error
        except OSError as error:
            raise cannot_write(path, error) from error
        if is_new:
            write_json(path / "STORE.json", {"format": FORMAT})
        store = cls.open(path)
        if not os.access(path, os.W_OK):
            raise UserError(f"store={root}: it is not writable; name another with store=PATH")
        return store

    def run(self, stage: str, signature: str) -> StoredRun:
        """The stage run of that signature, whether its folder exists or not."""
        return StoredRun(stage, signature, self.root / stage / signature)

    def runs(self) -> Iterator[StoredRun]:
        """Every stage run that has a `spec.json`, ordered by stage and signature."""
        for spec in sorted(self.root.glob("*/*/spec.json")):
            yield StoredRun(spec.parent.parent.name, spec.parent.name, spec.parent)

    @property
    def cache(self) -> Path:
        """Where tokenizers and tokens are kept by content hash."""
        return self.root / "cache"
