"""Atomic writes, checked reads of JSON objects, and hashes of files.

Every file of the store, the caches and the token shards is written through `replacing`: after a kill, a full disk or a
power cut, readers see the old file or the new one, never half of one. The store's records are sealed: their last key,
`sha256`, is the hash of all bytes before it, so a changed byte or another JSON value is noticed when it is read.
"""

import contextlib
import errno
import hashlib
import json
import os
import pwd
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipelines.errors import StageFailure, UserError
from pipelines.foreign_text import parsed


class UnreadableError(UserError):
    """This user may not read a file or folder, which may be whole."""


FULL = (errno.ENOSPC, errno.EDQUOT)
SEAL = re.compile(rb',\n "sha256": "([0-9a-f]{64})"\n}\s*\Z')
"""The end of a sealed file."""


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yields a temporary path next to `path` to write a file or a folder to; on exit it is renamed to `path`.

    The temporary name is hidden and unique, so concurrent writers never share one. `durable` flushes the content to
    disk before the rename and the new name after it. An existing file is replaced atomically; an existing folder is
    removed just before the rename. After an exception the temporary file or folder is removed and `path` is unchanged;
    after a kill the temporary one stays. Raises `StageFailure`, naming `path`, if the disk is full.
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
    except BaseException as error:
        full = full_disk(error, path)
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(missing_ok=True)
        if full:
            raise StageFailure(f"{path}: {full} and run the same command again") from error
        raise


def full_disk(error: BaseException, path: Path) -> str | None:
    """What the disk of `path` lacks, with the way out, if `error` says, perhaps in words, that it is full."""
    if isinstance(error, OSError):
        return why_full(path, error) if error.errno in FULL else None
    words = re.search(r"No space left on device|Disk quota exceeded|PytorchStreamWriter|os error 28", str(error))
    if words is None or not isinstance(error, Exception):
        return None
    return why_full(path, OSError(errno.EDQUOT if "quota" in words[0] else errno.ENOSPC, words[0]))


def remove_leftovers(folder: Path, pattern: str, *, unchanged_seconds: float = 0.0) -> None:
    """Remove the temporary files and folders of killed writers whose target's name matches the glob `pattern`.

    By default only for targets with a single writer: it must not be called while another process writes one of them.
    Where several may write, `unchanged_seconds` spares what has changed in that time.
    """
    for leftover in folder.glob(f".{pattern}.*"):
        with contextlib.suppress(OSError):  # another process removes it too, or it is another user's
            if time.time() - leftover.stat().st_mtime >= unchanged_seconds:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def current_umask() -> int:
    """The bits that this process leaves out of the modes of new files, for libraries that set a mode themselves."""
    # `os.umask` would change it for all threads for a moment.
    status = Path("/proc/self/status").read_text()
    return int(status.split("Umask:")[1].split()[0], 8)


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
    _write(path, json.dumps(content, indent=1, sort_keys=sort_keys).encode(), key)


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object whose last key is the hash of its bytes, for `read_sealed`; raises as `write_json` does."""
    _write(path, sealed(content), "store")


def sealed(content: dict[str, Any]) -> bytes:
    """The bytes of a sealed JSON object that is not empty."""
    body = json.dumps(content, indent=1, sort_keys=True).encode().removesuffix(b"\n}")
    return body + b',\n "sha256": "' + hashlib.sha256(body).hexdigest().encode() + b'"\n}'


def _write(path: Path, content: bytes, key: str) -> None:
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise cannot_write(path, error, key) from error


def cannot_write(path: Path, error: OSError, key: str = "store") -> Exception:
    """Returns the exception for a failed write: a message that names the key, the path and the fix."""
    if error.errno in FULL:
        return StageFailure(f"{key}={path}: {why_full(path, error)} and run the same command again")
    return UserError(
        f"{key}={path}: it cannot be written ({error.strerror}{_owner_of(path)}); choose another with {key}=PATH"
    )


def why_full(path: Path, error: OSError) -> str:
    """What a full disk lacks, with the way out: space, a user's quota, or entries for files."""
    if error.errno == errno.EDQUOT:
        return f"{os.strerror(errno.EDQUOT)}; delete some of your files"
    folder = next((parent for parent in (path, *path.parents) if parent.exists()), Path("/"))
    with contextlib.suppress(OSError):
        disk = os.statvfs(folder)
        if disk.f_files and not disk.f_favail:
            return f"{os.strerror(errno.ENOSPC)}, its disk has no inodes left; delete some files"
    return f"{os.strerror(errno.ENOSPC)}; free some space"


def _owner_of(path: Path) -> str:
    """Whose the nearest existing folder of `path` is, if it is another user's."""
    for parent in (path, *path.parents):
        with contextlib.suppress(OSError):
            owner = parent.stat().st_uid
            return "" if owner == os.geteuid() else f"; {parent} belongs to {_user(owner)}"
    return ""


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:  # a user of another machine
        return f"user {number}"


def read_json(
    path: Path, keys: Iterable[str] = (), fix: str = "delete only this file; it is written again"
) -> dict[str, Any]:
    """Returns the JSON object in `path`: the one reader for files whose mistakes a user has to fix.

    NaN is a number here, as metrics may be; half a surrogate pair in a text is read as U+FFFD.

    Raises `UserError`, with the path and the `fix`, if the file cannot be read, is not a JSON object, or lacks one of
    `keys`. Raises `FileNotFoundError` if there is no file.
    """
    return _object(path, _read(path, fix), fix=fix, keys=keys)


def read_sealed(
    path: Path, keys: Iterable[str] = (), fix: str = "delete only this file; it is written again"
) -> dict[str, Any]:
    """Returns the JSON object that `write_sealed` was given.

    Raises as `read_json` does, and `UserError` if the file was changed since.
    """
    text = _read(path, fix)
    content = _object(path, text, fix=fix)
    seal = SEAL.search(text)
    if seal is None:
        raise UserError(f"{path}: it does not end with its sha256, so it was changed after it was written; {fix}")
    actual = hashlib.sha256(text[: seal.start()]).hexdigest()
    if seal.group(1).decode() != actual:
        raise UserError(
            f"{path}: its sha256 is {actual[:12]}, written was {seal.group(1).decode()[:12]}, so it was changed; {fix}"
        )
    del content["sha256"]
    if missing := [key for key in keys if key not in content]:
        raise UserError(f"{path}: it has no {missing[0]!r}; {fix}")
    return content


def _read(path: Path, fix: str) -> bytes:
    try:
        # A pipe in place of a file would be waited for.
        if not path.is_file() and path.exists():
            raise UserError(f"{path}: it is not a file; {fix}")
        return path.read_bytes()
    except FileNotFoundError as error:
        if path.is_symlink():
            raise UserError(f"{path}: it is a link to {os.readlink(path)}, which does not exist; {fix}") from error
        raise
    except PermissionError as error:
        raise unreadable(path, error) from error
    except OSError as error:
        raise UserError(f"{path}: it cannot be read ({error.strerror}); {fix}") from error


def unreadable(path: Path, error: OSError) -> UnreadableError:
    """Returns the exception for a file or folder that this user may not read."""
    return UnreadableError(
        f"{path}: it cannot be read ({error.strerror}{_owner_of(path)}); "
        f"its owner can give you the right to: chmod g+rX {path}"
    )


def _object(path: Path, text: bytes, *, fix: str, keys: Iterable[str] = ()) -> dict[str, Any]:
    try:
        content = parsed(text)
    except (ValueError, RecursionError) as error:
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
