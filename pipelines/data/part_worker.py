"""A process that turns parts of sources into token shards; each part is one shard per split. Loads no torch.

The record of a part is written last, so a part without one has to be prepared again.
"""

import hashlib
import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.data.contamination import N
from pipelines.data.ngrams import Hashes, ngram_hashes, positions, split_words
from pipelines.data.shard_writer import ShardWriter
from pipelines.data.sources import Part, documents_of
from pipelines.data.token_shards import SPLITS, token_type
from pipelines.data.tokenizer import document_encoder
from pipelines.files import write_json
from pipelines.processes import die_with_parent

BATCH = 512
"""Documents that are encoded at a time."""
BATCH_CHARACTERS = 1 << 22
"""Characters that are encoded at a time, or one document of more: so that memory does not grow with their length."""


@dataclass(frozen=True)
class Preparation:
    """What the shards depend on, apart from the parts."""

    folder: Path
    validation: float
    """Share of the documents that is held out."""
    ngrams: Path | None
    """File with the n-gram hashes of the evaluation sets: sorted uint64."""
    end_of_text: int
    """Token that begins every document."""
    vocabulary: int
    """Number of tokens in the vocabulary."""


class _Worker:
    """What a worker process keeps from part to part."""

    def __init__(self, preparation: Preparation) -> None:
        self.preparation = preparation
        self.tokenizer = document_encoder(preparation.folder / "tokenizer" / "tokenizer.json")
        self.ngrams: Hashes | None = None if preparation.ngrams is None else np.load(preparation.ngrams)

    def prepare(self, part: Part) -> dict[str, Any]:
        """Write the shards of a part and then its record, which is returned."""
        folder, dtype = self.preparation.folder / part.source, token_type(self.preparation.vocabulary)
        counts = {"documents": 0, "characters": 0, "contaminated": 0, "without_text": 0}
        record: dict[str, Any] = {"part": asdict(part), "file": stamp(part)}
        with ExitStack() as stack:
            writers = {
                split: stack.enter_context(ShardWriter(folder / split / part.name, dtype, self.preparation.end_of_text))
                for split in SPLITS
            }
            # Leave out contaminated documents, encode the others, and distribute them over the splits.
            for batch in batches(_with_text(part, counts)):
                kept = [text for text in batch if not self._is_contaminated(text)]
                counts["documents"] += len(batch)
                counts["characters"] += sum(map(len, batch))
                counts["contaminated"] += len(batch) - len(kept)
                encodings = self.tokenizer.encode_batch_fast(kept, add_special_tokens=False)
                for text, encoding in zip(kept, encodings, strict=True):
                    split = "validation" if is_held_out(text, self.preparation.validation) else "train"
                    writers[split].add(encoding.ids)
        # The writers are closed, so the files are complete and can be hashed.
        shards = {split: entry for split, writer in writers.items() if (entry := writer.entry())}
        record |= {**counts, "shards": shards}
        write_json(record_path(self.preparation.folder, part), record, sort_keys=False, key="data.shards")
        return record

    def _is_contaminated(self, text: str) -> bool:
        """Whether a document shares an n-gram with an evaluation set."""
        return self.ngrams is not None and len(positions(ngram_hashes(split_words(text), N), self.ngrams)) > 0


def _with_text(part: Part, counts: dict[str, int]) -> Iterator[str]:
    """The documents of a part; records without text are counted."""
    for text in documents_of(part):
        if text is None:
            counts["without_text"] += 1
        else:
            yield text


_worker: _Worker | None = None
"""Set once in each worker process."""


def start_worker(preparation: Preparation) -> None:
    """Make this process a worker, which ends with its parent."""
    global _worker
    die_with_parent()  # no worker outlives a killed command
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches the worker too: end without a traceback
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the worker processes already use every core
    _worker = _Worker(preparation)


def prepare_part(part: Part) -> dict[str, Any]:
    """Prepare a part in a worker process; returns its record. Raises `StageFailure` if it cannot be read."""
    assert _worker is not None
    return _worker.prepare(part)


def stamp(part: Part) -> list[int] | None:
    """Returns size and time of a part's file, by which a changed one is noticed; None for a part of the Hub.

    Hashing it would take as long as preparing it.
    """
    if part.kind == "hub":
        return None
    status = os.stat(part.path)
    return [status.st_size, status.st_mtime_ns]


def record_path(folder: Path, part: Part) -> Path:
    """Returns the path of the record of a part."""
    return folder / part.source / f"{part.name}.json"


def is_held_out(text: str, share: float) -> bool:
    """Whether a document belongs to the validation split: a fixed function of its text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") < share * 2**64


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yields the texts in lists of at most `BATCH` texts and, but for a single one, `BATCH_CHARACTERS` characters."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        if len(batch) == BATCH or (batch and characters + len(text) > BATCH_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(text)
        characters += len(text)
    if batch:
        yield batch
