"""A small corpus with text and tasks."""

import pytest

from pipelines.configuration.data import DataConfig
from pipelines.data.corpus import Corpus, prepare


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """networkx's docstrings and sums of three numbers, 300 tokens. Test files that need another corpus override it."""
    return prepare(DataConfig("t", ["networkx"], ["chain3"], 300, 0.5, 0.5, 300, 8), tmp_path_factory.mktemp("cache"))
