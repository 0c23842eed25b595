"""What a finished stage run has published, checked against the hashes in its `result.json` before it is used.

Imports no torch.
"""

from pathlib import Path
from typing import Any

from pipelines.errors import StageFailure, UserError
from pipelines.files import read_sealed, sha256, sha256_of, unreadable

FORMAT = 2
"""Version of the store's layout, in `STORE.json`, `spec.json`, `result.json` and `state.json`."""
SAVED = "saved.json"
"""The hashes of an unfinished stage run's checkpoints, in its folder of work."""
RESULT_KEYS = ("stage", "signature", "seconds", "metrics", "measurements", "files")
"""What every `result.json` has."""


def redo(folder: Path) -> str:
    """The way out of a broken file in the folder of a stage run."""
    return f"shaping-sweeps verify --redo --store {folder.parents[1]} {folder.name} runs it again and what needs it"


def read_result(folder: Path) -> dict[str, Any]:
    """The content of a stage run's `result.json`; raises `UserError` if it was changed, `FileNotFoundError` without."""
    result = read_sealed(folder / "result.json", RESULT_KEYS, redo(folder))
    check_format(folder / "result.json", result)
    if (result["stage"], result["signature"]) != (folder.parent.name, folder.name):
        raise UserError(
            f"{folder}/result.json: it is the result of {result['stage']}/{result['signature']}; {redo(folder)}"
        )
    return result


def check_format(path: Path, content: dict[str, Any]) -> None:
    """Raise `UserError` if a file of the store was written by a version with another format."""
    if content.get("format") != FORMAT:
        raise UserError(
            f"{path}: its format is {content.get('format')!r} and this version reads {FORMAT}; "
            "use the version of shaping that wrote it, or another store"
        )


def saved_hashes(work: Path) -> dict[str, str]:
    """The hashes that the checkpoints in a folder of work had when they were saved.

    Raises `UserError` if they were changed.
    """
    path = work / SAVED
    return read_sealed(path, (), f"delete {work} to start from the beginning") if path.exists() else {}


def broken(path: Path, digest: str | None) -> str | None:
    """What is wrong with a published file whose hash was `digest` (None: it was not published), if anything.

    The file is streamed. Raises `UserError` if it cannot be read.
    """
    try:
        if not path.is_file():
            return f"{path}: it was published and is missing"
        if digest is None:
            return f"{path}: it was added after the stage run was published"
        actual = sha256(path)
    except PermissionError as error:
        raise unreadable(path, error) from error
    except OSError as error:
        return f"{path}: it cannot be read ({error.strerror})"
    return None if actual == digest else f"{path}: its sha256 is {actual[:12]}, published was {digest[:12]}"


def published_file(folder: Path, name: str, files: dict[str, str]) -> Path | None:
    """The path of a file that a stage run has published, or None if it published no such file.

    Raises `UserError` if it is not what was published; `files` are the hashes in its `result.json`.
    """
    path = folder / name
    if name not in files:
        return None
    if fault := broken(path, files[name]):
        raise UserError(f"{fault}; {redo(folder)}")
    return path


def checked_checkpoint(folder: Path, checkpoint: str) -> str:
    """Check a checkpoint of the stage run in `folder` before it is loaded; returns the hash of all that is loaded.

    Raises `StageFailure` if a file of it is missing, was changed or was added since it was published.
    """
    root = folder / "checkpoints" / checkpoint
    prefix = f"checkpoints/{checkpoint}/"
    try:
        files = read_result(folder)["files"]
        present = {str(path.relative_to(folder)) for path in root.rglob("*") if not path.is_dir()}
        hashes = {name: digest for name, digest in files.items() if name.startswith(prefix)}
        faults = [
            fault for name in sorted(present | hashes.keys()) if (fault := broken(folder / name, files.get(name)))
        ]
    except FileNotFoundError as error:
        raise StageFailure(f"{folder}: it has no result.json, so its checkpoints are not published") from error
    except PermissionError as error:
        raise StageFailure(str(unreadable(root, error))) from error
    except UserError as error:
        raise StageFailure(str(error)) from error
    if not hashes:
        faults = [f"{root}: no such checkpoint was published"]
    if faults:
        raise StageFailure(f"{faults[0]}; {redo(folder)}")
    return checkpoint_hash(files, checkpoint)


def checkpoint_hash(files: dict[str, str], checkpoint: str) -> str:
    """One hash of what is loaded of a checkpoint: not of its model card, which has times in it."""
    prefix = f"checkpoints/{checkpoint}/"
    return sha256_of({name: h for name, h in files.items() if name.startswith(prefix) and not name.endswith(".md")})
