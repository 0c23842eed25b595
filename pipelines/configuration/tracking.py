"""Where metrics go besides the ledger."""

from dataclasses import dataclass

from pipelines.errors import nearest, require


@dataclass
class TrackingConfig:
    """Where metrics are mirrored; the ledger in the store is the source of truth whatever is chosen."""

    mode: str = "offline"
    project: str = "shaping"
    entity: str | None = None

    def __post_init__(self) -> None:
        modes = ("offline", "online", "off")
        require(self.mode in modes, "tracking.mode", self.mode, fix=nearest(self.mode, modes))
