"""Local files of a cell: they are signed by their content, and their paths are not in any signature.

In a signed configuration a file is its content name, `<sha256>.<suffix>`. The path of each content name is in the
`compute` part of a spec, which is not signed.
"""

from collections.abc import Mapping
from pathlib import Path

from pipelines.errors import StageFailure
from pipelines.files import sha256


def content_name(path: str | Path) -> str:
    """Returns the name of a file in a signed configuration: the sha256 of its content, and its suffix."""
    return sha256(path) + Path(path).suffix


def path_of(name: str, paths: Mapping[str, str], key: str) -> str:
    """Returns the path of a content name; `key` is the configuration key that names the file.

    Raises `StageFailure` if the file has gone or has another content than when the stage run was planned.
    """
    path = paths.get(name)
    if path is None or not Path(path).is_file() or content_name(path) != name:
        raise StageFailure(
            f"{key}={path}: the file has gone or its content has changed since this stage run was planned; launch it "
            "again to plan it with the current file"
        )
    return path
