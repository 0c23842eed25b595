"""Files that a reader sees whole or not at all, JSON objects that are checked when they are read, and hashes of files.

Every file of the store, the caches and the token shards is written through `replacing`, so that a kill, a full disk or
a power cut leaves the old file or the new one, and never half of one.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipelines.errors import StageFailure, UserError


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A temporary path next to `path` to write a file or a folder to; afterwards it takes the place of `path`.

    The temporary name is hidden and unique, so several writers never share one. `durable` flushes the content to the
    disk before the rename and the name after it. An existing file is replaced atomically; an existing folder is
    removed just before the rename. After an exception the temporary file or folder is removed and `path` is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield temporary
        if durable:
            for file in sorted(temporary.rglob("*")) if temporary.is_dir() else [temporary]:
                flush(file)
        if path.is_dir():
            shutil.rmtree(path)
        temporary.rename(path)
        if durable:
            flush(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(missing_ok=True)
        raise


def flush(path: Path) -> None:
    """Flush a file's content, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON. Raises `StageFailure` on a full disk and `UserError` where `path` cannot be written."""
    try:
        with replacing(path) as temporary, temporary.open("w") as file:
            json.dump(content, file, indent=1, sort_keys=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> Exception:
    """`error` as a sentence that names the path and the way out."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StageFailure(f"store={path}: {error.strerror}; free some space and type the same command again")
    return UserError(f"store={path}: it cannot be written ({error.strerror}); name another with store=PATH")


def read_json(
    path: Path, keys: Iterable[str] = (), way_out: str = "delete only this file; it is written again"
) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises `UserError`, naming the file and the way out, where the file holds something else or lacks one of `keys`.
    """
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:  # broken JSON, or bytes that are no text
        raise UserError(f"{path}: it is not readable JSON ({error}); {way_out}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: it holds no JSON object; {way_out}")
    if missing := [key for key in keys if key not in content]:
        raise UserError(f"{path}: it has no {missing[0]}; {way_out}")
    return content


def sha256(path: Path | str) -> str:
    """The sha256 of a file in hexadecimal; the file is streamed, so it may be of any size."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(content: Any) -> str:
    """The sha256 in hexadecimal of a value that JSON can hold; the order of keys plays no part."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
