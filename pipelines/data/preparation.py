"""Turns documents into token shards with several processes; can be resumed. Loads no torch.

Each part of a source becomes one shard per split. The record of a part is written last, so a command that was killed
continues with the parts that have no record. A document's split is decided by the hash of its text, so equal texts are
in the same split whatever their source.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.configuration.data import DataConfig
from pipelines.data.compressed_files import opened
from pipelines.data.contamination import N
from pipelines.data.ngrams import ngram_hashes, split_words
from pipelines.data.part_schedule import PartSchedule, Progress, Record
from pipelines.data.part_worker import Preparation, prepare_part, record_path, stamp, start_worker
from pipelines.data.prepared_sources import NAME as SOURCES
from pipelines.data.prepared_sources import write_sources
from pipelines.data.sources import Part, documents_of, parts_of
from pipelines.data.token_shards import FORMAT, SPLITS
from pipelines.data.tokenizer import END_OF_TEXT, document_encoder, train_tokenizer
from pipelines.errors import StageFailure, UserError, require
from pipelines.files import read_json, replacing, sha256, write_json

TRAINED_ON = 1 << 27
"""Characters on which a tokenizer is trained, taken from the first documents of each source in equal shares."""

SMALL_BYTES = 1 << 24
"""Files of fewer bytes are a small corpus, of which a larger share is held out."""


def prepare_shards(
    data: DataConfig,
    *,
    processes: int,
    validation: float | None = None,
    evaluation_files: list[str],
    progress: Callable[[Progress], None] = lambda progress: None,
    again: bool = False,
) -> Path:
    """Make the token shards of `data.sources` in `data.shards` and return the path of their index.

    Documents that share n-grams with `evaluation_files` are left out. `validation` is the share of the documents that
    is held out, by default 0.001, or 0.05 of files of less than `SMALL_BYTES`. Finished parts are kept; `again` removes
    them and their tokenizer first. `progress` is called as the work begins and after each part. Raises `UserError` if
    no folder or source is configured, if a source does not have the fields of its documents, if the tokenizer has no
    end-of-text token, or if the folder was begun with another tokenizer, validation share or other evaluation sets.
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
    if again:
        _remove_shards(folder)
    folder.mkdir(parents=True, exist_ok=True)
    ngrams = _write_evaluation_ngrams(folder, evaluation_files)
    # Shards of different settings must not be mixed in one folder.
    budgets = {name: source.tokens for name, source in data.sources.items()}
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
            "other evaluation sets; make them again with --again, or name another folder"
        )
    # Workers load the tokenizer from the folder; its end-of-text token and size go into every shard.
    tokenizer = _prepare_tokenizer(data, parts, folder)
    write_json(settings_path, settings, key="data.shards")
    preparation = Preparation(folder, validation, ngrams, tokenizer["end_of_text"], tokenizer["vocabulary"])
    schedule = PartSchedule(parts, budgets, _records(folder, parts))
    _prepare_parts(schedule, preparation, processes=processes, progress=progress)
    records = schedule.used()
    write_sources(folder, data, parts, used=records)
    return _write_index(folder, records, tokenizer, searched=ngrams is not None)


def _remove_shards(folder: Path) -> None:
    """Remove what an earlier preparation wrote, and nothing else that is in the folder; the index goes first."""
    settings = folder / "preparation.json"
    if not settings.is_file():
        return
    sources = {part["source"] for part in read_json(settings, ("parts",))["parts"]}
    for name in ("index.json", SOURCES, "evaluation-ngrams.npy"):
        (folder / name).unlink(missing_ok=True)
    for name in ("tokenizer", *sources):
        shutil.rmtree(folder / name, ignore_errors=True)
    settings.unlink()


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


def _records(folder: Path, parts: list[Part]) -> dict[Part, Record]:
    """The records of the parts that are done; a part of a file that has changed since is not."""
    paths = {part: record_path(folder, part) for part in parts}
    records = {part: read_json(path) for part, path in paths.items() if path.exists()}
    return {part: record for part, record in records.items() if record["file"] == stamp(part)}


def _prepare_parts(
    schedule: PartSchedule, preparation: Preparation, *, processes: int, progress: Callable[[Progress], None]
) -> None:
    """Prepare the parts that have no record."""
    progress(schedule.progress())
    # Spawned, not forked: the tokenizer's threads do not survive a fork.
    with ProcessPoolExecutor(processes, get_context("spawn"), start_worker, (preparation,)) as pool:
        running: dict[Future[Record], Part] = {}
        try:
            while True:
                # One part more than there are processes, so that none of them waits.
                while len(running) <= processes and (part := schedule.next()):
                    running[pool.submit(prepare_part, part)] = part
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    schedule.done(running.pop(future), future.result())
                    progress(schedule.progress())
        except BrokenProcessPool as error:
            raise StageFailure(
                f"data.shards={preparation.folder}: a process was killed, most likely for want of memory; the same "
                "command resumes, with --processes=1 if it happens again"
            ) from error
        except BaseException:
            # Do not wait for parts that have not started; finished ones have their records.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _write_index(folder: Path, records: Mapping[Part, Record], tokenizer: dict[str, Any], *, searched: bool) -> Path:
    # source -> split -> its shards in the order of the parts
    sources: dict[str, dict[str, list[Any]]] = {}
    for part, record in records.items():
        splits = sources.setdefault(part.source, {split: [] for split in SPLITS})
        for split, shard in record["shards"].items():
            splits[split].append(shard)
    totals: dict[str, int | None] = {
        key: sum(record[key] for record in records.values())
        for key in ("documents", "characters", "contaminated", "without_text")
    }
    # Without evaluation sets nothing was searched, which is not the same as 0 documents.
    totals |= {} if searched else {"contaminated": None}
    index = {"format": FORMAT, **tokenizer, **totals, "sources": sources}
    path = folder / "index.json"
    # Signatures of stage runs contain the hash of this file, so the order of its keys must not change.
    write_json(path, index, sort_keys=False, key="data.shards")
    return path


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
    with opened(name) as file:
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
            _check_end_of_text(data, tokenizer, temporary / "tokenizer.json")
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


def _check_end_of_text(data: DataConfig, tokenizer: Any, file: Path) -> None:
    """Raise `UserError` if a document could contain the end-of-text token by writing it out."""
    if tokenizer.eos_token_id in document_encoder(file).encode(tokenizer.eos_token, add_special_tokens=False).ids:
        raise UserError(
            f"data.tokenizer={data.tokenizer}: it encodes the text {tokenizer.eos_token!r} as its end-of-text token, "
            "which would cut documents that contain it; make it a special token"
        )


def _first_documents(parts: list[Part]) -> Iterator[str]:
    """The first documents of each source, until each has given its share of `TRAINED_ON` characters."""
    sources = {part.source for part in parts}
    for source in sorted(sources):
        remaining = TRAINED_ON // len(sources)
        of_source = (part for part in parts if part.source == source)
        # One chain of all parts: those after the last document that is needed are never opened.
        for text in chain.from_iterable(map(documents_of, of_source)):
            if text is None:
                continue
            yield text
            remaining -= len(text)
            if remaining <= 0:
                break
