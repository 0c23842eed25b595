"""The folder of results: what this project writes there, and that nothing else in it is ever replaced."""

import re
from pathlib import Path

from analysis.table_builder import TABLE_NAMES
from analysis.table_files import FORMATS
from pipelines.errors import UserError

RESULTS = {"tables", "figures", "measurements.csv", "rl_runs.csv", "claims.json", "report.html"}
"""What this command writes to results/<scale>, besides `selection`."""


def check_replaceable(folder: Path) -> None:
    """Raise `UserError` if results/<scale>, which is replaced whole, has anything that this command did not write."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    ours = RESULTS if "claims.json" in names else set()  # other programs also write folders called tables and figures
    if others := names - ours - {"selection"}:
        raise _refusal(folder, others)
    check_selection(folder / "selection")


def check_selection(folder: Path) -> None:
    """Raise `UserError` if results/<scale>/selection has anything that is not a table."""
    endings = "|".join(table_format.ending for table_format in FORMATS.values())
    ours = rf"({'|'.join(TABLE_NAMES)})-.*\.({endings})"
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if others := {name for name in names if not re.fullmatch(ours, name)}:
        raise _refusal(folder, others)


def _refusal(folder: Path, others: set[str]) -> UserError:
    return UserError(
        f"results={folder}: it would be replaced, and {min(others)} in it is not from this command; "
        "move that away, or choose another folder with results=FOLDER"
    )


def cannot_write(folder: Path, error: OSError) -> UserError:
    """Returns what to raise where the folder cannot be written."""
    return UserError(f"results={folder}: it cannot be written ({error.strerror}); choose another folder")
