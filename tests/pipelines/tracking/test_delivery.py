"""A tracker that fails, hangs or is slow costs the stage nothing but a warning."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.configuration.tracking import TrackingConfig
from pipelines.ledger import Ledger
from pipelines.tracking import start
from pipelines.tracking.delivery import Delivery
from tests.pipelines.contexts import captured_log


class Failing:
    """A tracker that records its calls and raises, or waits for ever, at one of them."""

    def __init__(self, at: str, *, hang: bool = False) -> None:
        self.at, self.hang = at, hang
        self.calls: list[str] = []
        self._call("start")

    def _call(self, name: str) -> None:
        self.calls.append(name)
        while name == self.at and self.hang:
            time.sleep(0.05)
        if name == self.at:
            raise SystemExit(f"lost at {name}")

    def log(self, row: dict[str, Any]) -> None:
        self._call("log")

    def samples(self, name: str, rows: list[dict[str, Any]]) -> None:
        self._call("samples")

    def summarize(self, metrics: dict[str, Any]) -> None:
        self._call("summarize")

    def finish(self, failed: bool) -> None:
        self._call("finish")


def run(folder: Path, delivery: Delivery) -> list[int]:
    with Ledger(folder, [delivery]) as ledger:
        for step in range(20):
            ledger.log({"step": step})
            ledger.samples("samples", [{"a": 1}])
        ledger.summarize({"a": 1})
    return [json.loads(line)["step"] for line in (folder / "ledger.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("at", ["start", "log", "samples", "summarize", "finish"])
def test_a_tracker_that_is_lost_at_any_call_is_noted_once(tmp_path: Path, at: str) -> None:
    with captured_log() as records:
        assert run(tmp_path, Delivery("X", lambda: Failing(at))) == list(range(20))
    warnings = [record.getMessage() for record in records if record.levelname == "WARNING"]
    assert warnings == [f"X is lost (SystemExit: lost at {at}); the stage run continues, and its ledger has every row"]


@pytest.mark.parametrize("at", ["start", "log", "samples", "summarize", "finish"])
def test_a_tracker_that_hangs_is_abandoned(tmp_path: Path, at: str) -> None:
    abandoned: list[str] = []
    started = time.monotonic()
    with captured_log() as records:
        delivery = Delivery(
            "X", lambda: Failing(at, hang=True), finish_seconds=0.5, abandon=lambda: abandoned.append(at)
        )
        assert run(tmp_path, delivery) == list(range(20))
    assert time.monotonic() - started < 5
    assert abandoned == [at]
    assert [r.getMessage() for r in records if r.levelname == "WARNING"] == [
        "X is lost (it did not finish within 0.5 s); the stage run continues, and its ledger has every row"
    ]


def test_every_call_arrives_in_order(tmp_path: Path) -> None:
    trackers: list[Failing] = []

    def start() -> Failing:
        time.sleep(0.2)
        trackers.append(Failing("nowhere"))
        return trackers[0]

    run(tmp_path, Delivery("X", start))
    assert trackers[0].calls == ["start", *["log", "samples"] * 20, "summarize", "finish"]


def test_a_stage_that_fails_waits_less(tmp_path: Path) -> None:
    started = time.monotonic()
    delivery = Delivery("X", lambda: Failing("log", hang=True), finish_seconds=3)
    ledger = Ledger(tmp_path, [delivery])
    ledger.log({"step": 0})
    ledger.__exit__(ValueError, ValueError("broken"), None)
    assert time.monotonic() - started < 2


def test_a_tracker_of_ones_own_gets_what_ours_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[object, ...]] = []

    def make(*arguments: object) -> object:
        made.append(arguments)
        return "a tracker"

    monkeypatch.setitem(start.OTHER_TRACKERS, "mine", "somewhere:make")
    monkeypatch.setattr(start.pkgutil, "resolve_name", {"somewhere:make": make}.__getitem__)
    tracking = TrackingConfig("off", others=["mine"])
    assert start._other({"stage": "grpo"}, tmp_path, tracking, name="mine") == "a tracker"
    assert made == [({"stage": "grpo"}, tmp_path, tracking)]
