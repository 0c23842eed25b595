"""`shaping-sweeps contamination` with token shards, against a search of the documents for tuples of words."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.configuration.data import DataConfig, SourceConfig
from pipelines.data.corpus import prepare
from pipelines.data.docstrings import docstrings
from pipelines.data.ngrams import split_words
from pipelines.data.part_worker import is_held_out
from pipelines.data.preparation import prepare_shards
from pipelines.data.questions import contamination, load_items, load_questions
from tests.in_process import in_process

N = 13
FAMILIES = ["chain3", "chain4", "chain5", "python", "boolean", "order"]
ONLY_WEB = [
    override
    for stage in ("pretrain", "midtrain")
    for override in (
        *(f"{stage}.mixture.{source}=0" for source in ("text", *FAMILIES)),
        f"+{stage}.mixture.web=1",
    )
]


def data_config(folder: Path) -> DataConfig:
    data = DataConfig("nano", ["networkx"], FAMILIES, 400, 0.5, 0.5, 640, 16, shards=str(folder / "shards"))
    data.sources = {"web": SourceConfig("jsonl", str(folder / "web-*.jsonl"))}
    return data


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DataConfig, list[str]]:
    """Shards of documents, some of which contain questions that are measured and asked; and the training documents."""
    folder = tmp_path_factory.mktemp("web")
    data = data_config(folder)
    shards, data.shards = data.shards, None
    corpus = prepare(data, folder / "cache")
    data.shards = shards
    copied = [q.question for q in load_items(corpus, "chain5", count=20)]
    copied += [q.question for q in load_questions("chain4", "rl", corpus)[:15]]
    texts = [document.text for document in docstrings("networkx")][:80]
    texts += [f"An exercise: {question} and so on, in upper and lower case." for question in copied]
    for number in range(3):
        lines = [json.dumps({"text": text}) + "\n" for text in texts[number::3]]
        (folder / f"web-{number}.jsonl").write_text("".join(lines))
    prepare_shards(data, processes=1, validation=0.1, evaluation_files=[])
    return folder, data, [text for text in texts if not is_held_out(text, 0.1)]


def share(questions: list[str], documents: list[str]) -> float | None:
    """The share of the questions whose words are in a document, without hashes or tokens."""

    def grams(text: str, size: int) -> set[tuple[str, ...]]:
        words = split_words(text)
        return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}

    looked_up = [question for question in questions if len(split_words(question)) >= 5]
    matches = 0
    for question in looked_up:
        size = min(N, len(split_words(question)))
        matches += any(grams(question, size) & grams(text, size) for text in documents)
    return matches / len(looked_up) if looked_up else None


def report(folder: Path, *overrides: str) -> dict[str, Any]:
    arguments = ["contamination", "--json", "data.text=[networkx]", "data.tasks_per_family=400", *overrides]
    result = in_process("sweeps.commands.shaping_sweeps", *arguments, cwd=folder, environment={})
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_token_shards_are_searched(web: tuple[Path, DataConfig, list[str]]) -> None:
    folder, data, documents = web
    sources = [f"+data.shards={data.shards}", f"+data.sources={{web: {{kind: jsonl, path: '{folder}/web-*.jsonl'}}}}"]
    benchmarks = report(folder, *sources, *ONLY_WEB)["benchmarks"]
    corpus = prepare(data, folder / "store" / "cache")
    for name, task in (("Chain-5", "chain5"), ("Chain-4", "chain4")):
        expected = share([q.question for q in load_items(corpus, task, count=64)], documents)
        assert benchmarks[name]["contaminated"] == expected
    assert benchmarks["Chain-5"]["contaminated"] > 0.15
    asked = [q.question for split in ("rl", "validation") for q in load_questions("chain4", split, corpus)]
    assert benchmarks["grpo chain4"]["contaminated"] == share(asked, documents)
    assert benchmarks["grpo chain4"]["contaminated"] > 0.05
    # RL's own count does not search shards, and says so instead of reporting 0.
    assert contamination(load_questions("chain4", "rl", corpus), corpus, data.tasks) is None


def test_the_sources_of_all_cells_are_searched(web: tuple[Path, DataConfig, list[str]]) -> None:
    folder, data, _ = web
    sources = [f"+data.shards={data.shards}", f"+data.sources={{web: {{kind: jsonl, path: '{folder}/web-*.jsonl'}}}}"]
    # The second cell trains on questions of one family too.
    rest = [override for override in ONLY_WEB if override != "pretrain.mixture.chain4=0"]
    both = report(folder, *sources, *rest, "pretrain.mixture.chain4=0,1")["benchmarks"]
    one = report(folder, *sources, *ONLY_WEB)["benchmarks"]
    assert one["Chain-3"]["contaminated"] < both["Chain-3"]["contaminated"]
    assert one["Chain-5"] == both["Chain-5"]
    arguments = ["contamination", "data.tasks_per_family=300,400"]
    refused = in_process("sweeps.commands.shaping_sweeps", *arguments, cwd=folder, environment={})
    assert refused.returncode == 2
    assert "the cells differ in data" in refused.stderr
