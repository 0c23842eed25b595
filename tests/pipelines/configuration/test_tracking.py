"""The choice of trackers: W&B's variables, its limits, and packages that are not installed."""

import importlib.util

import pytest

from pipelines.configuration.tracking import TrackingConfig
from pipelines.errors import UserError
from sweeps.compose.cells import compose_cell, compose_cells


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_DISABLED", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("variables", "overrides", "mode"),
    [
        ({}, [], "offline"),
        ({"WANDB_MODE": "online"}, [], "online"),
        ({"WANDB_MODE": "dryrun"}, [], "offline"),
        ({"WANDB_MODE": "disabled"}, [], "off"),
        ({"WANDB_DISABLED": "true"}, [], "off"),
        ({"WANDB_DISABLED": "True"}, [], "off"),
        ({"WANDB_DISABLED": "false", "WANDB_MODE": "online"}, [], "online"),
        ({"WANDB_DISABLED": "true"}, ["tracking=online"], "online"),
        ({"WANDB_MODE": "online"}, ["tracking=off"], "off"),
        ({"WANDB_MODE": "online"}, ["tracking=tensorboard"], "off"),
        ({"WANDB_MODE": "online"}, ["tracking=[tensorboard,wandb]"], "online"),
        ({}, ["tracking=[online,csv]"], "online"),
    ],
)
def test_the_mode_is_what_the_configuration_or_wandb_says(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], overrides: list[str], mode: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert compose_cell(overrides).tracking.mode == mode


def test_the_project_is_what_the_configuration_or_wandb_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compose_cell([]).tracking.project == "shaping"
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    assert compose_cell([]).tracking.project == "theirs"
    assert compose_cell(["tracking.project=mine"]).tracking.project == "mine"
    monkeypatch.setenv("WANDB_PROJECT", "a/b")
    with pytest.raises(UserError, match="WANDB_PROJECT=a/b: a project has no slash"):
        compose_cell([])


def test_trackers_are_combined_in_sweeps_too() -> None:
    cells = compose_cells(["objective=ce,diversity", "tracking=[csv,tensorboard,offline]"])
    assert len(cells) == 2
    for cell in cells:
        assert cell.tracking == TrackingConfig(mode="offline", project="shaping", csv=True, tensorboard=True)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tracking.project=team/name", "tracking.project=team/name: .*tracking.entity=team tracking.project=name"),
        ("tracking.project='a#b'", "tracking.project=a#b: a project has none of the characters"),
        (f"tracking.project={'x' * 129}", "it may have 128 characters"),
        ("tracking.entity=a/b", "tracking.entity=a/b: name only the user or team"),
        (f"scale={'x' * 65}", "scale=x+: as a tag in W&B it may have 64 characters"),
        (f"model.name={'x' * 65}", "model.name=x+: as a tag"),
        (f"objective.name={'x' * 65}", "objective.name=x+: as a tag"),
        (f"sweep.name={'x' * 65}", "sweep.name=x+: as a tag"),
    ],
)
def test_limits_of_wandb_are_checked_at_composition(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose_cell([override])


def test_a_long_scale_is_fine_without_wandb() -> None:
    assert compose_cell([f"scale={'x' * 65}", "tracking=csv"]).scale == "x" * 65


def test_an_unknown_mode_of_the_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "onlin")
    with pytest.raises(UserError, match="WANDB_MODE=onlin: did you mean 'online'"):
        compose_cell([])


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_package_that_is_not_installed_is_one_sentence(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "pipelines.configuration.tracking.find_spec", lambda package: None if package == name else find(package)
    )
    with pytest.raises(UserError, match=rf"tracking.{name}=true: it is not installed; pip install 'shaping\[{name}\]'"):
        compose_cell([f"tracking={name}"])
