"""Atomic writes, checked reads of JSON objects, and hashes of files.

Every file of the store, the caches and the token shards is written through `replacing`: after a kill, a full disk or a
power cut, readers see the old file or the new one, never half of one.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from pipelines.errors import StageFailure, UserError


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yields a temporary path next to `path` to write a file or a folder to; on exit it is renamed to `path`.

    The temporary name is hidden and unique, so concurrent writers never share one. `durable` flushes the content to
    disk before the rename and the new name after it. An existing file is replaced atomically; an existing folder is
    removed just before the rename. After an exception the temporary file or folder is removed and `path` is unchanged;
    after a kill the temporary one stays.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield temporary
        if durable:
            for written in (temporary, *(temporary.rglob("*") if temporary.is_dir() else ())):
                flush(written)
        # A rename replaces a file, but not a folder that is not empty.
        if path.is_dir():
            shutil.rmtree(path)
        temporary.rename(path)
        if durable:
            flush(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(folder: Path, pattern: str, *, unchanged_seconds: float = 0.0) -> None:
    """Remove the temporary files and folders of killed writers whose target's name matches the glob `pattern`.

    By default only for targets with a single writer: it must not be called while another process writes one of them.
    Where several may write, `unchanged_seconds` spares what has changed in that time.
    """
    for leftover in folder.glob(f".{pattern}.*"):
        with contextlib.suppress(FileNotFoundError):  # another process removes it too, or has just finished it
            if time.time() - leftover.stat().st_mtime >= unchanged_seconds:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def flush(path: Path) -> None:
    """Flush a file's content, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any, *, sort_keys: bool = True, key: str = "store") -> None:
    """Write `content` as JSON.

    Raises `StageFailure` on a full disk and `UserError` if `path` cannot be written; `key` is the configuration key of
    the folder in the message.
    """
    try:
        with replacing(path) as temporary, temporary.open("w") as file:
            json.dump(content, file, indent=1, sort_keys=sort_keys)
    except OSError as error:
        raise cannot_write(path, error, key) from error


def cannot_write(path: Path, error: OSError, key: str = "store") -> Exception:
    """Returns the exception for a failed write: a message that names the key, the path and the fix."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StageFailure(f"{key}={path}: {error.strerror}; free some space and run the same command again")
    return UserError(f"{key}={path}: it cannot be written ({error.strerror}); choose another with {key}=PATH")


def read_json(
    path: Path, keys: Iterable[str] = (), fix: str = "delete only this file; it is written again"
) -> dict[str, Any]:
    """Returns the JSON object in `path`: the one reader for files whose mistakes a user has to fix.

    Raises `UserError`, with the path and the `fix`, if the file cannot be read, is not a JSON object, or lacks one of
    `keys`. Raises `FileNotFoundError` if there is no file.
    """
    try:
        text = path.read_bytes()
        try:
            content = orjson.loads(text)
        except orjson.JSONDecodeError:
            content = json.loads(text)  # slower, but accepts NaN, which metrics may be
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: it is not readable JSON ({error}); {fix}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: it is not a JSON object; {fix}")
    if missing := [key for key in keys if key not in content]:
        raise UserError(f"{path}: it has no {missing[0]!r}; {fix}")
    return content


def sha256(path: Path | str) -> str:
    """Returns the sha256 of a file in hexadecimal. The file is streamed, so it may be of any size."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(content: Any) -> str:
    """Returns the sha256 in hexadecimal of a JSON value, with keys sorted so that their order does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
