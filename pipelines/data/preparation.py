"""Turns documents into token shards with several processes; can be resumed. Loads no torch.

Each part of a source becomes one shard per split. The record of a part is written last, so a command that was killed
continues with the parts that have no record. A document's split is decided by the hash of its text, so equal texts are
in the same split whatever their source.
"""

import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from pipelines.configuration.data import DataConfig
from pipelines.data.contamination import N
from pipelines.data.ngrams import Hashes, ngram_hashes, positions, split_words
from pipelines.data.shard_writer import ShardWriter
from pipelines.data.sources import Part, documents_of, open_file, parts_of
from pipelines.data.token_shards import FORMAT, SPLITS, token_type
from pipelines.data.tokenizer import END_OF_TEXT, train_tokenizer
from pipelines.errors import StageFailure, UserError, require
from pipelines.files import read_json, replacing, sha256, write_json
from pipelines.processes import die_with_parent

BATCH = 512
"""Documents that are encoded at a time."""
TRAINED_ON = 1 << 27
"""Characters on which a tokenizer is trained, taken from the first documents of each source in equal shares."""

SMALL_BYTES = 1 << 24
"""Files of fewer bytes are a small corpus, of which a larger share is held out."""

Progress = Callable[[int, int, dict[str, Any]], None]
"""Called with the number of parts done, the number of all parts, and the record of the newest."""


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


def prepare_shards(
    data: DataConfig,
    *,
    processes: int,
    validation: float | None = None,
    evaluation_files: list[str],
    progress: Progress = lambda done, total, record: None,
) -> Path:
    """Make the token shards of `data.sources` in `data.shards` and return the path of their index.

    Documents that share n-grams with `evaluation_files` are left out. `validation` is the share of the documents that
    is held out, by default 0.001, or 0.05 of files of less than `SMALL_BYTES`. Finished parts are kept. Raises
    `UserError` if no folder or source is configured, if the tokenizer has no end-of-text token, or if the folder was
    begun with another tokenizer, validation share or other evaluation sets.
    """
    require(data.shards is not None, "data.shards", "null", fix="name the folder for the token shards")
    require(bool(data.sources), "data.sources", "{}", fix="name at least one source")
    assert data.shards is not None
    folder = Path(data.shards)
    # Parts come before the folder is created: a wrong path leaves nothing behind.
    parts = _all_parts(data)
    validation = _usual_share(parts) if validation is None else validation
    for name in evaluation_files:
        require(os.path.isfile(name), "--decontaminate", name, fix="no such file; give the path of an existing one")
    folder.mkdir(parents=True, exist_ok=True)
    ngrams = _write_evaluation_ngrams(folder, evaluation_files)
    # Shards of different settings must not be mixed in one folder.
    settings = {
        "tokenizer": _tokenizer_content(data),
        "validation": validation,
        "ngrams": None if ngrams is None else sha256(ngrams),
        "parts": [asdict(part) for part in parts],
    }
    settings_path = folder / "preparation.json"
    if settings_path.exists() and read_json(settings_path) != settings:
        raise UserError(
            f"data.shards={folder}: it was begun with another tokenizer, other sources, another validation share or "
            "other evaluation sets; name another folder, or delete it"
        )
    # Workers load the tokenizer from the folder; its end-of-text token and size go into every shard.
    tokenizer = _prepare_tokenizer(data, parts, folder)
    write_json(settings_path, settings, key="data.shards")
    preparation = Preparation(folder, validation, ngrams, tokenizer["end_of_text"], tokenizer["vocabulary"])
    records = _prepare_parts(parts, preparation, processes=processes, progress=progress)
    return _write_index(folder, records, tokenizer, searched=ngrams is not None)


def _usual_share(parts: list[Part]) -> float:
    """The share of the documents that is held out by default: of a small corpus, 0.001 would be no text to measure."""
    files = {part.path for part in parts if part.kind != "hub"}
    is_small = all(part.kind != "hub" for part in parts) and sum(map(os.path.getsize, files)) < SMALL_BYTES
    return 0.05 if is_small else 0.001


def _all_parts(data: DataConfig) -> list[Part]:
    """The parts of all sources; one exception has a sentence for each source that cannot be read."""
    parts: list[Part] = []
    problems: list[Exception] = []
    # Opening a data set of the Hub mostly waits.
    with ThreadPoolExecutor(max(1, len(data.sources))) as pool:
        for future in [pool.submit(parts_of, name, source) for name, source in data.sources.items()]:
            try:
                parts += future.result()
            except (UserError, StageFailure) as problem:
                problems.append(problem)
    if problems:
        raise type(problems[0])("\n".join(map(str, problems)))
    return parts


def _tokenizer_content(data: DataConfig) -> Any:
    """What the tokenizer is made of: its name on the Hub, the hash of its folder's file, or the size of a new one."""
    if data.tokenizer is None:
        return {"trained": data.vocab_size}
    file = Path(data.tokenizer) / "tokenizer.json"
    return {"sha256": sha256(file)} if file.is_file() else data.tokenizer


def _prepare_parts(
    parts: list[Part], preparation: Preparation, *, processes: int, progress: Progress
) -> dict[Part, dict[str, Any]]:
    """Returns the record of every part, in the order of `parts`; those without one are prepared first."""
    paths = {part: _record_path(preparation.folder, part) for part in parts}
    records = {part: read_json(path) for part, path in paths.items() if path.exists()}
    # A part of a file that has changed since is prepared again. Records of earlier versions do not have its stamp.
    records = {part: record for part, record in records.items() if record.get("file", _stamp(part)) == _stamp(part)}
    # Spawned, not forked: the tokenizer's threads do not survive a fork.
    with ProcessPoolExecutor(processes, get_context("spawn"), _start_worker, (preparation,)) as pool:
        futures = {pool.submit(_prepare_part, part): part for part in parts if part not in records}
        try:
            for future in as_completed(futures):
                records[futures[future]] = future.result()
                progress(len(records), len(parts), future.result())
        except BrokenProcessPool as error:
            raise StageFailure(
                f"data.shards={preparation.folder}: a process was killed, most likely for want of memory; the same "
                "command resumes, with --processes=1 if it happens again"
            ) from error
        except BaseException:
            # Do not wait for parts that have not started; finished ones have their records.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {part: records[part] for part in parts}


def _stamp(part: Part) -> list[int] | None:
    """Size and time of the file of a part, by which a changed one is noticed; None for a part of the Hub.

    Hashing it would take as long as preparing it.
    """
    if part.kind == "hub":
        return None
    status = os.stat(part.path)
    return [status.st_size, status.st_mtime_ns]


def _record_path(folder: Path, part: Part) -> Path:
    return folder / part.source / f"{part.name}.json"


def _write_index(
    folder: Path, records: dict[Part, dict[str, Any]], tokenizer: dict[str, Any], *, searched: bool
) -> Path:
    # source -> split -> its shards in the order of the parts
    sources: dict[str, dict[str, list[Any]]] = {}
    for part, record in records.items():
        splits = sources.setdefault(part.source, {split: [] for split in SPLITS})
        for split, shard in record["shards"].items():
            splits[split].append(shard)
    totals: dict[str, int | None] = {
        key: sum(record[key] for record in records.values()) for key in ("documents", "characters", "contaminated")
    }
    # Without evaluation sets nothing was searched, which is not the same as 0 documents.
    totals |= {} if searched else {"contaminated": None}
    index = {"format": FORMAT, **tokenizer, **totals, "sources": sources}
    path = folder / "index.json"
    # Signatures of stage runs contain the hash of this file, so the order of its keys must not change.
    write_json(path, index, sort_keys=False, key="data.shards")
    return path


class _Worker:
    """What a worker process keeps from part to part."""

    def __init__(self, preparation: Preparation) -> None:
        self.preparation = preparation
        self.tokenizer = Tokenizer.from_file(str(preparation.folder / "tokenizer" / "tokenizer.json"))
        self.ngrams: Hashes | None = None if preparation.ngrams is None else np.load(preparation.ngrams)

    def prepare(self, part: Part) -> dict[str, Any]:
        """Write the shards of a part and then its record, which is returned."""
        folder, dtype = self.preparation.folder / part.source, token_type(self.preparation.vocabulary)
        record: dict[str, Any] = {"part": asdict(part), "file": _stamp(part)}
        record |= {"documents": 0, "characters": 0, "contaminated": 0}
        with ExitStack() as stack:
            writers = {
                split: stack.enter_context(ShardWriter(folder / split / part.name, dtype, self.preparation.end_of_text))
                for split in SPLITS
            }
            # Leave out contaminated documents, encode the others, and distribute them over the splits.
            for batch in _batches(documents_of(part)):
                kept = [text for text in batch if text and not self._is_contaminated(text)]
                record["documents"] += len(batch)
                record["characters"] += sum(map(len, batch))
                record["contaminated"] += sum(map(bool, batch)) - len(kept)
                encodings = self.tokenizer.encode_batch_fast(kept, add_special_tokens=False)
                for text, encoding in zip(kept, encodings, strict=True):
                    split = "validation" if is_held_out(text, self.preparation.validation) else "train"
                    writers[split].add(encoding.ids)
        # The writers are closed, so the files are complete and can be hashed.
        record["shards"] = {split: entry for split, writer in writers.items() if (entry := writer.entry())}
        write_json(_record_path(self.preparation.folder, part), record, sort_keys=False, key="data.shards")
        return record

    def _is_contaminated(self, text: str) -> bool:
        """Whether a document shares an n-gram with an evaluation set."""
        return self.ngrams is not None and len(positions(ngram_hashes(split_words(text), N), self.ngrams)) > 0


_worker: _Worker | None = None
"""Set once in each worker process."""


def _start_worker(preparation: Preparation) -> None:
    global _worker
    die_with_parent()  # no worker outlives a killed command
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches the worker too: end without a traceback
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the worker processes already use every core
    _worker = _Worker(preparation)


def _prepare_part(part: Part) -> dict[str, Any]:
    assert _worker is not None
    return _worker.prepare(part)


def is_held_out(text: str, share: float) -> bool:
    """Whether a document belongs to the validation split: a fixed function of its text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") < share * 2**64


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _write_evaluation_ngrams(folder: Path, evaluation_files: list[str]) -> Path | None:
    """Write the n-gram hashes of the evaluation sets as one sorted file; None if there are no sets."""
    if not evaluation_files:
        return None
    hashes = [ngram_hashes(split_words(text), N) for name in evaluation_files for text in _evaluation_texts(name)]
    path = folder / "evaluation-ngrams.npy"
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, np.unique(np.concatenate(hashes)) if hashes else np.array([], np.uint64))
    return path


def _evaluation_texts(name: str) -> Iterator[str]:
    """Every string of every record of a JSONL file.

    Texts of fewer than `N` words, such as answers, have no n-grams: they would be found everywhere.
    """
    with open_file(name) as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
            except ValueError as error:
                raise UserError(f"--decontaminate={name}: line {number} is not JSON ({error})") from error
            values = record.values() if isinstance(record, dict) else [record]
            yield from (value for value in values if isinstance(value, str))


def _prepare_tokenizer(data: DataConfig, parts: list[Part], folder: Path) -> dict[str, Any]:
    """Put the tokenizer into `folder / "tokenizer"` unless it exists; returns its entries in the index.

    It is the one that `data.tokenizer` names, or one trained on the first documents.
    """
    path = folder / "tokenizer"
    if not (path / "shaping.json").exists():
        tokenizer = _load_or_train_tokenizer(data, parts)
        with replacing(path) as temporary:
            tokenizer.save_pretrained(temporary)
            if not (temporary / "tokenizer.json").exists():
                raise UserError(
                    f"data.tokenizer={data.tokenizer}: it is not a fast tokenizer (it has no tokenizer.json)"
                )
            content = {
                "tokenizer": sha256(temporary / "tokenizer.json"),
                "vocabulary": len(tokenizer),
                "end_of_text": tokenizer.eos_token_id,
            }
            (temporary / "shaping.json").write_text(json.dumps(content))
    return read_json(path / "shaping.json", ("tokenizer", "vocabulary", "end_of_text"))


def _load_or_train_tokenizer(data: DataConfig, parts: list[Part]) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if data.tokenizer:
        try:
            tokenizer = AutoTokenizer.from_pretrained(data.tokenizer)
        except (OSError, ValueError) as error:
            message = str(error).splitlines()[0]
            raise UserError(f"data.tokenizer={data.tokenizer}: it cannot be loaded ({message})") from error
    else:
        backend = train_tokenizer(_first_documents(parts), data.vocab_size)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)
    if tokenizer.eos_token_id is None:
        raise UserError(f"data.tokenizer={data.tokenizer}: it has no end-of-text token, which begins every document")
    return tokenizer


def _first_documents(parts: list[Part]) -> Iterator[str]:
    """The first documents of each source, until each has given its share of `TRAINED_ON` characters."""
    sources = {part.source for part in parts}
    for source in sorted(sources):
        remaining = TRAINED_ON // len(sources)
        of_source = (part for part in parts if part.source == source)
        # One chain of all parts: those after the last document that is needed are never opened.
        for text in chain.from_iterable(map(documents_of, of_source)):
            yield text
            remaining -= len(text)
            if remaining <= 0:
                break
