"""What stage runs are called in the sweeps that were launched with one scale.

A spec has the labels of the sweep that ran it first. A later sweep may reuse the stage run under another scale, or with
another name of its model or objective; what that sweep calls it is in the record of its launch.
"""

from typing import Any

from sweeps.monitor.launched_sweeps import records
from sweeps.store.stage_runs import Store


def launched_labels(store: Store, scale: str | None) -> dict[str, dict[str, Any]]:
    """Returns signature -> labels in the newest launch with this scale; empty without a scale."""
    if scale is None:
        return {}
    return {
        signature: run["labels"]
        for record in records(store)
        for signature, run in record.runs.items()
        if run["labels"].get("scale") == scale
    }
