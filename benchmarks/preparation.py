"""`shaping-data prepare` in two processes against two processes that do nothing but tokenize the same documents.

The peer has the documents in memory, decompressed and parsed, so that its time is the tokenizer's own.
"""

import json
import os
import random
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa

from benchmarks.comparison import Row, report, timed
from pipelines.configuration.data import DataConfig, SourceConfig
from pipelines.data.docstrings import docstrings
from pipelines.data.preparation import prepare_shards
from pipelines.data.tokenizer import document_encoder

REPEATS = 6
"""How often the text is repeated, each time in another order of its paragraphs."""
BAR = 1.25
"""Time of `prepare` over that of the tokenizer alone: at least 0.8 of its speed."""
LAYOUTS = {"JSONL": ".jsonl", "zstd JSONL": ".jsonl.zst", "one zstd file": ".jsonl.zst"}


def main() -> int:
    texts = _texts()
    with tempfile.TemporaryDirectory() as folder:
        # A preparation of the first file trains the tokenizer of all others.
        sources = {layout: _write(Path(folder, str(i)), texts, layout) for i, layout in enumerate(LAYOUTS)}
        first = _data(f"{folder}/first", sources["one zstd file"], None)
        prepare_shards(first, processes=2, validation=0.01, evaluation_files=[])
        tokenizer = f"{folder}/first/tokenizer"
        rows = []
        with ProcessPoolExecutor(2, get_context("spawn"), _start, (f"{tokenizer}/tokenizer.json",)) as pool:
            halves = [texts[0::2], texts[1::2]]
            _tokenize(pool, halves)
            for i, (layout, source) in enumerate(sources.items()):
                data = _data(f"{folder}/{i}-shards", source, tokenizer)
                sides: dict[str, Callable[[], object]] = {
                    "ours": partial(_prepare, data),
                    "peer": partial(_tokenize, pool, halves),
                }
                seconds = timed(sides, rounds=3, warm_up=0)
                rows.append(Row(f"prepare {layout} / only the tokenizer", seconds["ours"], seconds["peer"], "s", BAR))
    return report(rows, f"Preparation of {sum(map(len, texts)) / 1e6:.0f} MB in two processes, one after the other")


def _texts() -> list[str]:
    """Documents of a few kilobytes, no two alike."""
    rng = random.Random(0)
    texts = []
    for _ in range(REPEATS):
        for document in docstrings("sympy"):
            paragraphs = document.text.split("\n\n")
            rng.shuffle(paragraphs)
            texts.append("\n\n".join(paragraphs))
    return texts


def _write(folder: Path, texts: list[str], layout: str) -> SourceConfig:
    """Write the texts as the files of a source: four, or a single one."""
    folder.mkdir()
    files = 1 if layout.startswith("one") else 4
    for i in range(files):
        data = "".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(texts[i::files])).encode()
        if LAYOUTS[layout].endswith(".zst"):
            data = pa.Codec("zstd", compression_level=3).compress(data, asbytes=True)
        Path(folder, f"{i}{LAYOUTS[layout]}").write_bytes(data)
    return SourceConfig("jsonl", str(folder))


def _data(shards: str, source: SourceConfig, tokenizer: str | None) -> DataConfig:
    data = DataConfig("t", tasks=["chain3"], vocab_size=8192, shards=shards, tokenizer=tokenizer)
    data.sources = {"web": source}
    return data


def _prepare(data: DataConfig) -> None:
    for record in Path(str(data.shards), "web").glob("*.json"):
        record.unlink()
    prepare_shards(data, processes=2, validation=0.01, evaluation_files=[])


def _tokenize(pool: ProcessPoolExecutor, halves: list[list[str]]) -> int:
    return sum(pool.map(_only_tokenize, halves))


_encoder = None


def _start(tokenizer: str) -> None:
    global _encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encoder = document_encoder(Path(tokenizer))


def _only_tokenize(texts: list[str]) -> int:
    assert _encoder is not None
    pieces = (texts[i : i + 512] for i in range(0, len(texts), 512))
    return sum(len(e.ids) for piece in pieces for e in _encoder.encode_batch_fast(piece, add_special_tokens=False))


if __name__ == "__main__":
    sys.exit(main())
