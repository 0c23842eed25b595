"""The known numbers that the paper reports, each with its table; no other number is filled in."""

from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd

MODELS = ("1B", "4B", "5B-A0.3B", "10B-A0.5B")
"""The paper's models in its order."""

EXPERTS = {"5B-A0.3B", "10B-A0.5B"}
"""The paper's mixtures of experts."""


@cache
def reference() -> pd.DataFrame:
    """Returns columns `table model stage objective budget benchmark metric value source`; values are percent."""
    with files("analysis").joinpath("reference.csv").open() as file:
        return pd.read_csv(file, dtype={"table": int, "value": float})


def reported(table: int | None, objective: str) -> list[dict[Any, Any]]:
    """Returns the reported numbers of one setting in one table; none for a table that the paper does not have."""
    return _by_setting().get((table, objective), [])


@cache
def _by_setting() -> dict[Any, list[dict[Any, Any]]]:
    """(table, objective) -> its rows."""
    return {key: rows.to_dict("records") for key, rows in reference().groupby(["table", "objective"], sort=False)}
