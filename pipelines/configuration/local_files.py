"""Local files of a cell: they are signed by their content, and their paths are not in any signature.

In a signed configuration a file is its content name, `<sha256>.<suffix>`. The path of each content name is in the
`compute` part of a spec, which is not signed.
"""

from collections.abc import Mapping
from pathlib import Path

from pipelines.errors import StageFailure
from pipelines.files import sha256, sha256_of


def content_name(path: str | Path) -> str:
    """Returns the name of a file in a signed configuration: the sha256 of its content, and its suffix.

    That of a folder is the hash of all files in it.
    """
    if Path(path).is_dir():
        files = [file for file in sorted(Path(path).rglob("*")) if file.is_file() and "__pycache__" not in file.parts]
        return sha256_of({str(file.relative_to(path)): sha256(file) for file in files}) + ".folder"
    return sha256(path) + Path(path).suffix


def path_of(name: str, paths: Mapping[str, str], key: str) -> str:
    """Returns the path of a content name; `key` is the configuration key that names the file.

    Raises `StageFailure` if the file has gone or has another content than when the stage run was planned.
    """
    path = paths.get(name)
    if path is None or not Path(path).exists() or content_name(path) != name:
        raise StageFailure(
            f"{key}={path}: it has gone or its content has changed since this stage run was planned; launch it "
            "again to plan it with the current file"
        )
    return path
