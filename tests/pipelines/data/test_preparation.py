"""Token shards: reading returns the tokens of the documents; kills, damaged copies and user errors."""

import gzip
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from pipelines.configuration.budgets import PretrainConfig
from pipelines.configuration.compute import ComputeConfig
from pipelines.configuration.data import DataConfig, SourceConfig
from pipelines.configuration.model import ModelConfig
from pipelines.data.corpus import prepare
from pipelines.data.docstrings import docstrings
from pipelines.data.ngrams import ngram_hashes
from pipelines.data.part_worker import is_held_out
from pipelines.data.preparation import _first_documents, _write_evaluation_ngrams, prepare_shards
from pipelines.data.sources import Part, documents_of, parts_of
from pipelines.data.token_shards import TokenShards, fingerprint, token_type
from pipelines.errors import StageFailure, UserError
from pipelines.files import sha256
from pipelines.models.causal_lm import build_model
from pipelines.training.train import train
from shaping import Objective
from tests.pipelines.contexts import stage_context

TEXTS = [document.text for document in docstrings("networkx")][:300]


def write_jsonl(path: Path, texts: list[str]) -> None:
    opened: Callable[..., object] = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt") as file:  # type: ignore[attr-defined]
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataConfig, Path]:
    """Shards of two sources, in two processes, with documents of an evaluation set left out."""
    folder = tmp_path_factory.mktemp("shards")
    write_jsonl(folder / "a.jsonl", TEXTS[:200])
    write_jsonl(folder / "b.jsonl.gz", TEXTS[200:250])
    (folder / "c.txt").write_text("\n\n".join(text.replace("\n\n", "\n") for text in TEXTS[250:]))
    long = [text for text in TEXTS[:200] if len(text.split()) > 60]
    question = " ".join(long[0].split()[5:40]).upper()  # in upper case and without its surroundings
    (folder / "evaluation.jsonl").write_text(json.dumps({"question": question, "answer": "the"}) + "\n")
    data = DataConfig("t", [], ["chain3"], 100, 0.5, 0.5, 400, 8, shards=str(folder / "shards"))
    data.sources = {
        "web": SourceConfig("jsonl", str(folder / "*.jsonl*").replace("*.jsonl*", "[ab].jsonl*")),
        "prose": SourceConfig("text", str(folder / "c.txt")),
    }
    prepare_shards(data, processes=2, validation=0.2, evaluation_files=[str(folder / "evaluation.jsonl")])
    return data, folder


def test_shards_hold_every_document_once(prepared: tuple[DataConfig, Path]) -> None:
    data, _ = prepared
    shards = TokenShards(str(data.shards))
    tokenizer = AutoTokenizer.from_pretrained(shards.folder / "tokenizer")
    documents: dict[str, list[str]] = {"train": [], "validation": []}
    for split, texts in documents.items():
        for shard in shards.index["sources"]["web"][split]:
            rows = np.fromfile(shards.folder / "web" / split / f"{shard['name']}.tokens", "<u2")
            starts = shards.documents("web", split, shard["name"])
            assert rows[-1] == tokenizer.eos_token_id
            for begin, stop in zip(starts, [*starts[1:-1], starts[-1] - 1], strict=False):
                assert rows[begin] == tokenizer.eos_token_id
                texts.append(tokenizer.decode(rows[int(begin) + 1 : int(stop)]))
    assert sum(map(len, documents.values())) == 249 == shards.index["documents"] - 1 - count_prose(shards)
    assert all(is_held_out(text, 0.2) for text in documents["validation"])
    assert not any(is_held_out(text, 0.2) for text in documents["train"])
    missing = set(TEXTS[:250]) - set(documents["train"]) - set(documents["validation"])
    assert len(missing) == 1  # the document that contains the evaluation set's question
    assert shards.index["contaminated"] == 1
    # What was read counts, and not only what was kept.
    records = [json.loads(path.read_text()) for path in (shards.folder / "web").glob("*.json")]
    assert sum(record["characters"] for record in records) == sum(map(len, TEXTS[:250]))


def count_prose(shards: TokenShards) -> int:
    return sum(shard["documents"] for split in shards.index["sources"]["prose"].values() for shard in split)


def test_a_data_set_of_the_hub_is_read_through_its_library(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()  # a folder is a data set to the library that the Hub's names go to
    write_jsonl(tmp_path / "set" / "b.jsonl", TEXTS[:50])
    (part,) = parts_of("web", SourceConfig("hub", str(tmp_path / "set")))
    assert list(documents_of(part)) == TEXTS[:50]
    with pytest.raises(UserError, match=r"column=body: .*set has no column 'body'; it is one of: text"):
        parts_of("web", SourceConfig("hub", str(tmp_path / "set"), column="body"))


def test_a_changed_file_and_a_changed_tokenizer_are_noticed(tmp_path: Path) -> None:
    for i in range(2):
        write_jsonl(tmp_path / f"{i}.jsonl", TEXTS[:60])
    data = DataConfig("t", [], ["chain3"], 100, 0.5, 0.5, 400, 8, shards=str(tmp_path / "shards"))
    data.sources = {"web": SourceConfig("jsonl", str(tmp_path / "*.jsonl"))}
    done: list[int] = []

    def prepare() -> str:
        index = prepare_shards(
            data,
            processes=1,
            validation=0.1,
            evaluation_files=[],
            progress=lambda progress: done.append(progress.parts),
        )
        return sha256(index)

    first = prepare()
    assert prepare() == first
    assert done == [0, 1, 2, 2]
    # A file of the same size with other texts: only its part is prepared again.
    write_jsonl(tmp_path / "1.jsonl", [text.swapcase() for text in TEXTS[:60]])
    assert prepare() != first
    assert done[-2:] == [1, 2]
    # A local tokenizer counts by its content.
    shutil.copytree(tmp_path / "shards" / "tokenizer", tmp_path / "tokenizer")
    shutil.copytree(tmp_path / "tokenizer", tmp_path / "copy")
    data.shards, data.tokenizer = str(tmp_path / "other"), str(tmp_path / "tokenizer")
    before = prepare()
    data.tokenizer = str(tmp_path / "copy")
    assert prepare() == before
    (tmp_path / "copy" / "tokenizer.json").write_text((tmp_path / "copy" / "tokenizer.json").read_text() + " ")
    with pytest.raises(UserError, match="it was begun with another tokenizer"):
        prepare()


def test_a_killed_or_interrupted_command_is_resumed(tmp_path: Path) -> None:
    for i in range(12):
        write_jsonl(tmp_path / f"{i:02d}.jsonl", TEXTS[:100])
    code = (
        "import sys; from pipelines.configuration.data import DataConfig, SourceConfig; "
        "from pipelines.data.preparation import prepare_shards\n"
        "if __name__ == '__main__':\n"
        f"    d = DataConfig('t', [], ['chain3'], 100, 0.5, 0.5, 400, 8, shards={str(tmp_path / 'shards')!r})\n"
        f"    d.sources = {{'web': SourceConfig('jsonl', {str(tmp_path / '*.jsonl')!r})}}\n"
        "    show = lambda progress: print(progress.parts, flush=True)\n"
        "    prepare_shards(d, processes=1, validation=0.1, evaluation_files=[], progress=show)\n"
    )
    script = tmp_path / "prepare.py"
    script.write_text(code)
    errors = []
    for stop_signal in (signal.SIGKILL, signal.SIGINT):
        command = subprocess.Popen(
            [sys.executable, str(script)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert command.stdout is not None
        done = 0
        while not done:  # the first state is that before any part
            done = int(command.stdout.readline())
        assert done < 12
        if stop_signal == signal.SIGKILL:
            command.kill()  # the kernel kills its workers
        else:
            os.killpg(command.pid, signal.SIGINT)  # a terminal's Ctrl-C reaches the workers too
        errors.append(command.communicate(timeout=60)[1])
    assert errors[-1].count("Traceback") == 1, errors[-1]  # of the script itself, none of its workers
    assert fingerprint(tmp_path / "shards") is None
    time.sleep(0.2)
    records = sorted((tmp_path / "shards" / "web").glob("*.json"))
    before = {path: path.stat().st_mtime_ns for path in records}
    assert 1 <= len(before) < 12
    finished = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert finished.stdout.splitlines()[-1] == "12"
    assert all(path.stat().st_mtime_ns == changed for path, changed in list(before.items())[:1])
    shards = TokenShards(tmp_path / "shards")
    assert shards.verify() == 24
    assert shards.index["documents"] == 12 * 100


def test_shards_that_differ_from_their_index_are_rejected(prepared: tuple[DataConfig, Path], tmp_path: Path) -> None:
    data, _ = prepared
    subprocess.run(["cp", "-r", str(data.shards), str(tmp_path / "copy")], check=True)
    shard = next((tmp_path / "copy" / "web" / "train").glob("*.tokens"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-2])
    with pytest.raises(StageFailure, match=r"bytes, not \d+ as in the index; copy"):
        TokenShards(tmp_path / "copy")
    shard.write_bytes(content[:-2] + bytes([content[-2] ^ 1, content[-1]]))
    with pytest.raises(StageFailure, match="sha256"):
        TokenShards(tmp_path / "copy")
    (tmp_path / "copy" / "index.json").write_text('{"format": 99}')
    with pytest.raises(StageFailure, match="format 99"):
        TokenShards(tmp_path / "copy")


def test_user_errors_name_key_and_value(prepared: tuple[DataConfig, Path], tmp_path: Path) -> None:
    data, _ = prepared
    with pytest.raises(UserError, match="begun with another"):
        prepare_shards(data, processes=1, validation=0.5, evaluation_files=[])
    other = DataConfig("t", [], ["chain3"], 100, 0.5, 0.5, 400, 8, shards=str(tmp_path / "s"), tokenizer="/nowhere/x")
    other.sources = dict(data.sources)
    with pytest.raises(UserError, match=r"data\.tokenizer=/nowhere/x"):
        prepare_shards(other, processes=1, validation=0.1, evaluation_files=[])
    other.sources = {"web": SourceConfig("jsonl", str(tmp_path / "*.jsonl"))}
    other.shards = str(tmp_path / "never")
    with pytest.raises(UserError, match=r"data\.sources\.web\.path"):
        prepare_shards(other, processes=1, validation=0.1, evaluation_files=[])
    assert not (tmp_path / "never").exists()
    (tmp_path / "set.jsonl").write_text('{"question": "x"}\nnot so\n')
    with pytest.raises(UserError, match=r"--decontaminate=.*set\.jsonl: line 2 is not JSON"):
        prepare_shards(data, processes=1, validation=0.1, evaluation_files=[str(tmp_path / "set.jsonl")])
    assert token_type(65536).itemsize == 2
    assert token_type(65537).itemsize == 4


def test_training_on_shards(prepared: tuple[DataConfig, Path], tmp_path: Path) -> None:
    """A model trains on a mixture of shards and generated tasks, with the shards' tokenizer."""
    data, _ = prepared
    corpus = prepare(data, tmp_path / "cache")
    budget = PretrainConfig(64 * 8, 64, 16, 1e-2, 1e4, {"web": 2.0, "prose": 1.0, "chain3": 1.0}, 1, warmup_steps=2)
    model = build_model(ModelConfig("t", 1, 16, 32, 2, 1, 8), corpus.tokenizer, 1e4, seed=3, vocabulary=512)
    assert model.config.vocab_size == 512
    with stage_context(corpus, tmp_path, seed=7, compute=ComputeConfig(micro_batch_tokens=32)) as context:
        metrics = train(model, Objective(), budget, context=context)
    assert metrics["loss"] < np.log(512)
    with pytest.raises(StageFailure, match="vocab_size=100"):
        build_model(ModelConfig("t", 1, 16, 32, 2, 1, 8), corpus.tokenizer, 1e4, seed=3, vocabulary=100)
    held_out = corpus.rows("web", "test", 16)
    assert len(held_out) > 0
    assert held_out[np.array([0, 1])].shape == (2, 17)
    index = Path(str(data.shards)) / "index.json"
    assert fingerprint(str(data.shards)) == hashlib.sha256(index.read_bytes()).hexdigest()


def test_more_shards_than_a_process_may_open_files(tmp_path: Path) -> None:
    """1,100 shards in a process that may open 200 files: every row is read, in random order and many at once."""
    names, dtype = [f"{i:05d}" for i in range(1100)], np.dtype("<u2")
    (tmp_path / "web" / "train").mkdir(parents=True)
    whole = np.random.default_rng(0).integers(0, 300, (len(names), 35)).astype(dtype)
    for name, tokens in zip(names, whole, strict=True):
        tokens.tofile(tmp_path / "web" / "train" / f"{name}.tokens")
    shards = [{"name": name, "tokens": 35, "documents": 1, "sha256": {}} for name in names]
    index = {"format": 1, "vocabulary": 300, "sources": {"web": {"train": shards, "validation": []}}}
    (tmp_path / "index.json").write_text(json.dumps(index))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 200, limits[1]))
    try:
        rows = TokenShards(tmp_path).rows("web", "train", 16)
        assert len(rows) == 2 * len(names)
        kept = [rows[int(i)] for i in np.random.default_rng(1).permutation(len(rows))]
        many = rows[np.arange(len(rows))]
        assert len(os.listdir("/proc/self/fd")) <= opened + 150
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    expected = np.concatenate([tokens[start : start + 17] for tokens in whole for start in (0, 16)]).reshape(-1, 17)
    np.testing.assert_array_equal(many, expected)
    np.testing.assert_array_equal(np.stack(kept), expected[np.random.default_rng(1).permutation(len(rows))])


def test_a_tokenizer_is_trained_on_no_more_parts_than_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each source gives its share of the characters; parts after that are not opened."""
    opened: list[tuple[str, int]] = []

    def documents(part: Part) -> Iterator[str]:
        opened.append((part.source, part.start))
        yield from ["x" * 40, "y" * 40]

    monkeypatch.setattr("pipelines.data.preparation.documents_of", documents)
    monkeypatch.setattr("pipelines.data.preparation.TRAINED_ON", 400)
    parts = [Part(source, str(i), "hub", "", "text", start=i) for source in "ab" for i in range(50)]
    assert [len(text) for text in _first_documents(parts)] == [40] * 10
    assert opened == [(source, i) for source in "ab" for i in range(3)]


def test_shards_that_were_not_searched_do_not_say_that_nothing_was_dropped(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", TEXTS[:20])
    (tmp_path / "evaluation.jsonl").write_text(json.dumps({"question": "a question that none of these texts has"}))
    counts = []
    for name, files in (("without", []), ("with", [str(tmp_path / "evaluation.jsonl")])):
        data = DataConfig("t", [], ["chain3"], 100, 0.5, 0.5, 400, 8, shards=str(tmp_path / name))
        data.sources = {"web": SourceConfig("jsonl", str(tmp_path / "a.jsonl"))}
        prepare_shards(data, processes=1, validation=0.2, evaluation_files=files)
        counts.append(TokenShards(tmp_path / name).index["contaminated"])
    assert counts == [None, 0]


def test_no_ngram_of_an_evaluation_set_crosses_two_strings_or_records(tmp_path: Path) -> None:
    """Of its strings of 7, 7, 14 and 12 words, which follow each other, only the third has n-grams of 13; it is not
    the first of its record."""
    words = [f"w{i}" for i in range(40)]
    texts = [" ".join(words[start:stop]) for start, stop in ((0, 7), (7, 14), (14, 28), (28, 40))]
    records = [{"question": texts[0], "answer": texts[1]}, {"level": "2", "question": texts[2]}, {"question": texts[3]}]
    path = tmp_path / "evaluation.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    file = _write_evaluation_ngrams(tmp_path, [str(path)])
    assert file is not None
    assert np.load(file).tolist() == sorted(ngram_hashes(words[14:28], 13).tolist())
