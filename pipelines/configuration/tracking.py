"""Weights & Biases, to which metrics are copied."""

from dataclasses import dataclass

from pipelines.errors import require_option

MODES = ("offline", "online", "off")


@dataclass
class TrackingConfig:
    """Where metrics are copied to; the ledger in the store stays the source of truth."""

    mode: str = "offline"
    """`offline`: W&B writes runs to disk; `online`: it sends them while they run; `off`: no W&B."""
    project: str = "shaping"
    """W&B project."""
    entity: str | None = None
    """W&B user or team; null: the account's default."""

    def __post_init__(self) -> None:
        require_option("tracking.mode", self.mode, MODES)
