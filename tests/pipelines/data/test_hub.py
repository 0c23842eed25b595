"""Libraries of the Hub do not try again for a minute where nothing answers."""

import datasets
import httpx
import pytest
from datasets import config as datasets_config
from huggingface_hub import constants

from pipelines.configuration.data import SourceConfig
from pipelines.data.hub import without_waiting
from pipelines.data.sources import parts_of
from pipelines.errors import StageFailure


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets_config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets_config, "HF_DATASETS_OFFLINE", False)
    without_waiting.cache_clear()


def test_a_hub_that_does_not_answer_is_not_asked_again(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def unreachable(url: str, **_: object) -> None:
        asked.append(url)
        raise httpx.ConnectError("no route to host")

    monkeypatch.setattr(httpx, "head", unreachable)
    for name in ("some/set", "other/set"):
        with pytest.raises(
            StageFailure,
            match=rf"path={name}: the data set cannot be read from the Hub \((?!None).*{name}.*\); .*kind=parquet",
        ):
            parts_of("web", SourceConfig("hub", name))
    assert asked == [constants.ENDPOINT]
    assert "Retrying" not in "".join(capfd.readouterr())


def test_a_hub_that_answers_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpx, "head", lambda url, **_: httpx.Response(503))
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_dict({"text": ["a"]}).to_iterable_dataset()
    )
    assert len(parts_of("web", SourceConfig("hub", "some/set"))) == 1
    assert not constants.HF_HUB_OFFLINE
