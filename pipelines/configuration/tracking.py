"""The services to which metrics are copied: Weights & Biases, TensorBoard, CSV files, MLflow."""

import os
from dataclasses import dataclass, field
from importlib.util import find_spec

from pipelines.errors import UserError, require, require_option

MODES = ("offline", "online", "off")

TAG_LENGTH = 64
"""Characters of a W&B tag."""

NAME_LENGTH = 128
"""Characters of the name of a W&B project, run or group."""

NOT_IN_PROJECT = "/\\#?%:"
"""Characters that the name of a W&B project cannot have."""

WANDB_MODES = {"online": "online", "run": "online", "shared": "online", "offline": "offline", "dryrun": "offline"}
WANDB_MODES |= {"disabled": "off"}
"""Values of W&B's variable WANDB_MODE -> the mode here."""

OTHER_TRACKERS: dict[str, str] = {}
"""Name -> `module:Class` of a tracker of another package, from its entry points `shaping.trackers`."""

TRUE = ("1", "true", "t", "yes", "y", "on")
"""Values of WANDB_DISABLED that W&B takes for true."""


@dataclass
class TrackingConfig:
    """Where metrics are copied to; the ledger in the store stays the source of truth."""

    mode: str | None = "off"
    """`offline`: W&B writes runs to disk; `online`: it sends them while they run; `off`: no W&B; null: what WANDB_MODE
    and WANDB_DISABLED say, and offline without them."""
    project: str | None = None
    """W&B project and MLflow experiment; null: WANDB_PROJECT, and `shaping` without it."""
    entity: str | None = None
    """W&B user or team; null: WANDB_ENTITY, and the account's default without it."""
    console: bool = False
    """Whether W&B gets what a stage run prints."""
    system_metrics: bool = False
    """Whether W&B gets the machine's use of processors, memory and GPUs."""
    tensorboard: bool = False
    """Whether to write TensorBoard's event files, to `tensorboard` in the store."""
    csv: bool = False
    """Whether to write CSV files, to `csv` in the store."""
    mlflow: bool = False
    """Whether to log to MLflow, at MLFLOW_TRACKING_URI or in `mlflow` in the store."""
    others: list[str] = field(default_factory=list)
    """Trackers of other packages, by the names of their entry points `shaping.trackers`."""

    def __post_init__(self) -> None:
        self.mode = _environment_mode() if self.mode is None else self.mode
        require_option("tracking.mode", self.mode, MODES)
        variable = os.environ.get("WANDB_PROJECT")
        key = "tracking.project" if self.project or not variable else "WANDB_PROJECT"
        self.project = self.project or variable or "shaping"
        self._check_project(key, self.project)
        if self.entity is not None:
            require("/" not in self.entity, "tracking.entity", self.entity, fix="name only the user or team")
        for name in self.others:
            fix = "no installed package has an entry point shaping.trackers; install one, or leave the name out"
            require(bool(OTHER_TRACKERS), "tracking.others", name, fix=fix)
            require_option("tracking.others", name, OTHER_TRACKERS)
        for name, chosen in (("tensorboard", self.tensorboard), ("mlflow", self.mlflow)):
            if chosen and find_spec(name) is None:
                raise UserError(f"tracking.{name}=true: it is not installed; pip install 'shaping[{name}]'")

    def _check_project(self, key: str, project: str) -> None:
        entity, _, name = project.partition("/")
        require(
            not set(NOT_IN_PROJECT) & set(project),
            key,
            project,
            fix=f"a project has no slash; set tracking.entity={entity} tracking.project={name}"
            if entity and name and not set(NOT_IN_PROJECT) & set(name)
            else f"a project has none of the characters {' '.join(NOT_IN_PROJECT)}",
        )
        require(len(project) <= NAME_LENGTH, key, project, fix=f"it may have {NAME_LENGTH} characters")


def _environment_mode() -> str:
    """The mode that W&B's variables name."""
    if os.environ.get("WANDB_DISABLED", "").lower() in TRUE:
        return "off"
    mode = os.environ.get("WANDB_MODE") or "offline"
    require_option("WANDB_MODE", mode, WANDB_MODES)
    return WANDB_MODES[mode]
