"""Levels, destination and format of log lines."""

import logging
import re
import warnings
from collections.abc import Iterator

import pytest

from pipelines.errors import UserError
from pipelines.logs import PACKAGES, QUIET, set_up_logging


@pytest.fixture(autouse=True)
def loggers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Loggers and warning filters as before the test, and no level from the environment."""
    monkeypatch.delenv("SHAPING_LOG_LEVEL", raising=False)
    monkeypatch.delenv("SHAPING_DEBUG", raising=False)
    before = [(logger := logging.getLogger(n), logger.level, logger.propagate, logger.handlers[:]) for n in PACKAGES]
    quiet = [(logger := logging.getLogger(n), logger.level) for n in QUIET]
    with warnings.catch_warnings():
        yield
    for logger, level, propagate, handlers in before:
        logger.propagate, logger.handlers[:] = propagate, handlers
        logger.setLevel(level)
    for logger, level in quiet:
        logger.setLevel(level)


def log_all(name: str) -> None:
    for level in (logging.DEBUG, logging.INFO, logging.WARNING):
        logging.getLogger(name).log(level, "a %s line", logging.getLevelName(level))


def test_one_dated_line_on_standard_error_however_often_it_is_set_up(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        set_up_logging()
    log_all("pipelines.training")
    output = capsys.readouterr()
    assert output.out == ""
    lines = output.err.splitlines()
    assert [line.split(maxsplit=2)[2] for line in lines] == ["INFO a INFO line", "WARNING a WARNING line"]
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in lines)


@pytest.mark.parametrize(
    ("argument", "environment", "lines"),
    [
        (None, {}, 2),
        (None, {"SHAPING_DEBUG": "1"}, 3),
        (None, {"SHAPING_LOG_LEVEL": "warning"}, 1),
        (None, {"SHAPING_LOG_LEVEL": "ERROR", "SHAPING_DEBUG": "1"}, 0),
        ("DEBUG", {"SHAPING_LOG_LEVEL": "ERROR"}, 3),
    ],
)
def test_levels(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    argument: str | None,
    environment: dict[str, str],
    lines: int,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    set_up_logging(argument)
    for package in PACKAGES:
        log_all(f"{package}.module")
        assert len(capsys.readouterr().err.splitlines()) == lines, package


def test_an_unknown_level_is_named() -> None:
    with pytest.raises(UserError, match="SHAPING_LOG_LEVEL=LOUD: it is one of: CRITICAL"):
        set_up_logging("loud")


def test_libraries_are_quiet_below_warnings() -> None:
    set_up_logging()
    assert not any(logging.getLogger(name).isEnabledFor(logging.INFO) for name in QUIET)
    assert all(logging.getLogger(name).isEnabledFor(logging.WARNING) for name in QUIET)


def test_deprecation_warnings_show_only_when_debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    for debug, shown in (("", 0), ("1", 1)):
        monkeypatch.setenv("SHAPING_DEBUG", debug)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            set_up_logging()
            warnings.warn("old", DeprecationWarning, stacklevel=1)
        assert len(caught) == shown
