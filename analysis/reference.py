"""The numbers that the paper reports, as far as they are known, each with its table; nothing is filled in."""

from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd

MODELS = ("1B", "4B", "5B-A0.3B", "10B-A0.5B")
"""The paper's models in its order."""

EXPERTS = {"5B-A0.3B", "10B-A0.5B"}
"""Those that are mixtures of experts."""


@cache
def reference() -> pd.DataFrame:
    """Columns `table model stage objective budget benchmark metric value source`; values in percent."""
    with files("analysis").joinpath("reference.csv").open() as file:
        return pd.read_csv(file, dtype={"table": int, "value": float})


def known(table: int, objective: str | None = None) -> list[dict[Any, Any]]:
    """The reported numbers of one table (and setting)."""
    rows = reference()
    rows = rows[rows["table"] == table]
    if objective is not None:
        rows = rows[rows["objective"] == objective]
    return rows.to_dict("records")
