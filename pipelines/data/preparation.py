"""Documents -> token shards: many processes, resumable. Loads no torch.

The input is cut into parts (a file, a stretch of a large JSONL file, row groups of a Parquet file, a shard of a
streamed data set); a part becomes one shard a split, and its record is written last, so a command that was killed goes
on with the parts that have none. Documents are split by the hash of their text: a text is on one side wherever it comes
from.
"""

import ctypes
import glob
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.configuration.data import DataConfig, SourceConfig
from pipelines.data.token_shards import FORMAT, SPLITS, token_type
from pipelines.errors import StageFailure, UserError, require

STRETCH = 1 << 26
"""Bytes of a JSONL file that make a part."""
ROW_GROUPS = 8
"""Row groups of a Parquet file that make a part."""
BATCH = 512
"""Documents that are encoded at a time."""
NGRAM = 13
"""Words in a row that a document must not share with an evaluation set; 13 is GPT-3's number."""
TRAINED_ON = 1 << 27
"""Characters that a tokenizer is trained on, from the first documents of each source in equal shares."""

PR_SET_PDEATHSIG = 1

WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Part:
    """A piece of a source that one process reads."""

    source: str
    name: str
    kind: str
    path: str
    column: str
    start: int = 0
    """First byte (`jsonl`), row group (`parquet`), or the number of a streamed data set's shard (`hub`)."""
    stop: int | None = None
    """Where it ends; of `hub`, how many shards there are."""
    subset: str | None = None
    split: str = "train"
    revision: str | None = None


@dataclass(frozen=True)
class Preparation:
    """What the shards depend on besides the parts."""

    folder: str
    validation: float
    """Share of the documents that is held out."""
    ngrams: str | None
    """File of the evaluation sets' n-gram hashes, sorted uint64."""


def parts_of(name: str, source: SourceConfig) -> list[Part]:
    """The parts of a source, in a fixed order; raises `UserError` where there are none."""
    if source.kind == "hub":
        count = _hub(source.path, source.subset, source.split, source.revision).num_shards
        place = (source.subset, source.split, source.revision)
        return [Part(name, f"{i:05d}", "hub", source.path, source.column, i, count, *place) for i in range(count)]
    paths = sorted(path for path in glob.glob(source.path, recursive=True) if os.path.isfile(path))
    require(bool(paths), f"data.sources.{name}.path", source.path, fix="no file has that name")
    pieces: list[tuple[str, int, int | None]] = []
    for path in paths:
        if source.kind == "jsonl" and not path.endswith(".gz"):
            size = os.path.getsize(path)
            pieces += [(path, start, min(start + STRETCH, size)) for start in range(0, size, STRETCH)]
        elif source.kind == "parquet":
            groups = _parquet(path).num_row_groups
            pieces += [(path, start, min(start + ROW_GROUPS, groups)) for start in range(0, groups, ROW_GROUPS)]
        else:
            pieces.append((path, 0, None))
    return [
        Part(name, f"{i:05d}", source.kind, path, source.column, start, stop)
        for i, (path, start, stop) in enumerate(pieces)
    ]


def documents_of(part: Part) -> Iterator[str]:
    """The documents of a part; raises `StageFailure` for a record that has none, with its place."""
    if part.kind == "hub":
        data = _hub(part.path, part.subset, part.split, part.revision)
        for record in data.shard(num_shards=part.stop or 1, index=part.start):
            yield _text(record, part, "a record")
    elif part.kind == "parquet":
        file = _parquet(part.path)
        if part.column not in file.schema_arrow.names:
            raise StageFailure(f"{part.path}: it has no column {part.column!r}; it has {file.schema_arrow.names}")
        for group in range(part.start, part.stop or file.num_row_groups):
            for value in file.read_row_group(group, [part.column]).column(0).to_pylist():
                yield _text({part.column: value}, part, f"a record of row group {group}")
    elif part.kind == "jsonl":
        yield from _jsonl(part)
    else:
        with _opened(part.path) as file:
            text = io.TextIOWrapper(file, "utf-8", errors="replace").read()
        yield from (piece for piece in re.split(r"\n\s*\n", text) if piece.strip())


def _jsonl(part: Part) -> Iterator[str]:
    """Lines that begin in [start, stop)."""
    with _opened(part.path) as file:
        at = part.start
        if at:
            file.seek(at - 1)
            at += len(file.readline()) - 1  # the rest of a line that the part before has, or its newline
        while part.stop is None or at < part.stop:
            line = file.readline()
            if not line:
                return
            try:
                record = json.loads(line)
            except ValueError as error:
                raise StageFailure(f"{part.path}: the line at byte {at} is not JSON ({error})") from error
            yield _text(record, part, f"the line at byte {at}")
            at += len(line)


def _text(record: Any, part: Part, where: str) -> str:
    value = record.get(part.column) if isinstance(record, dict) else None
    if not isinstance(value, str):
        raise StageFailure(
            f"{part.path}: {where} has no text in {part.column!r}; set data.sources.{part.source}.column"
        )
    return value


def _opened(path: str) -> Any:
    return gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb")


def _parquet(path: str) -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError("data.sources.*.kind=parquet: it needs pyarrow; pip install 'shaping[data]'") from error
    return parquet.ParquetFile(path)


def _hub(path: str, subset: str | None, split: str, revision: str | None) -> Any:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UserError("data.sources.*.kind=hub: it needs datasets; pip install 'shaping[data]'") from error
    return load_dataset(path, subset, split=split, revision=revision, streaming=True)


def ngram_hashes(text: str) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Hashes of all runs of `NGRAM` words of a text, case and punctuation left out; of a shorter one, of all of it."""
    words = np.array([hash_word(word) for word in WORD.findall(text.lower())], dtype=np.uint64)
    width = min(NGRAM, len(words))
    if not width:
        return words
    hashes = np.zeros(len(words) - width + 1, np.uint64)
    for i in range(width):  # a polynomial in an odd number, modulo 2^64
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + words[i : len(hashes) + i]
    return hashes


_WORDS: dict[str, int] = {}


def hash_word(word: str) -> int:
    """A word's hash, the same in every process."""
    if word not in _WORDS:
        if len(_WORDS) > 1_000_000:
            _WORDS.clear()
        _WORDS[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
    return _WORDS[word]


def is_held_out(text: str, share: float) -> bool:
    """Whether a document belongs to the validation split: a fixed function of its text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") < share * 2**64


_state: dict[str, Any] = {}
"""What a worker process keeps: its tokenizer and the evaluation sets' n-grams."""


def _start_worker(preparation: Preparation) -> None:
    from tokenizers import Tokenizer

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # no worker outlives a killed command
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches it too, and it has nothing to say of that
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process a core is the parallelism
    _state["tokenizer"] = Tokenizer.from_file(str(Path(preparation.folder) / "tokenizer" / "tokenizer.json"))
    _state["ngrams"] = None if preparation.ngrams is None else np.load(preparation.ngrams)


def _prepare_part(part: Part, preparation: Preparation, end: int, vocabulary: int) -> dict[str, Any]:
    """Write the shards of a part and, last, its record."""
    tokenizer, ngrams = _state["tokenizer"], _state["ngrams"]
    kind, root = token_type(vocabulary), Path(preparation.folder) / part.source
    record: dict[str, Any] = {"part": asdict(part), "documents": 0, "characters": 0, "contaminated": 0, "shards": {}}
    writers = {split: _Writer(root / split, part.name, kind, end) for split in SPLITS}
    for batch in _batches(documents_of(part)):
        kept = []
        for text in batch:
            record["documents"] += 1
            record["characters"] += len(text)
            if ngrams is not None and _contains(ngrams, ngram_hashes(text)):
                record["contaminated"] += 1
            elif text:
                kept.append(text)
        for text, encoding in zip(kept, tokenizer.encode_batch_fast(kept, add_special_tokens=False), strict=True):
            writers["validation" if is_held_out(text, preparation.validation) else "train"].add(encoding.ids)
    for split, writer in writers.items():
        if shard := writer.close():
            record["shards"][split] = shard
    path = root / f"{part.name}.json"
    beside = path.with_suffix(f".{os.getpid()}.tmp")
    beside.write_text(json.dumps(record))
    beside.rename(path)
    return record


def _contains(known: np.ndarray[Any, Any], hashes: np.ndarray[Any, Any]) -> bool:
    places = np.searchsorted(known, hashes)
    return bool((known[np.minimum(places, len(known) - 1)] == hashes).any()) if len(known) else False


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


class _Writer:
    """Writes one shard; the files appear under their names when it is closed, and not at all where it is empty."""

    def __init__(self, folder: Path, name: str, kind: np.dtype[Any], end: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._place, self._name, self._kind, self._end = folder / name, name, kind, end
        self._beside = self._place.with_suffix(f".{os.getpid()}.tmp")  # another command may be at the same part
        self._file = self._beside.open("wb")
        self._starts: list[int] = []
        self._count = 0

    def add(self, tokens: list[int]) -> None:
        self._starts.append(self._count)
        self._file.write(np.array([self._end, *tokens], self._kind).tobytes())
        self._count += len(tokens) + 1

    def close(self) -> dict[str, Any] | None:
        if self._count:
            self._file.write(np.array([self._end], self._kind).tobytes())
            self._count += 1
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if not self._count:
            self._beside.unlink()
            return None
        documents = self._place.with_suffix(".documents")
        np.array([*self._starts, self._count], "<u8").tofile(documents)
        self._beside.rename(self._place.with_suffix(".tokens"))
        hashes = {}
        for suffix in (".tokens", ".documents"):
            with self._place.with_suffix(suffix).open("rb") as file:
                hashes[suffix] = hashlib.file_digest(file, "sha256").hexdigest()
        return {"name": self._name, "tokens": self._count, "documents": len(self._starts), "sha256": hashes}


Progress = Callable[[int, int, dict[str, Any]], None]
"""Told of parts done, parts in all, and the record of the newest."""


def prepare_shards(
    data: DataConfig, processes: int, validation: float, evaluation_files: list[str], progress: Progress
) -> Path:
    """Make the token shards of `data.sources` in `data.shards`; returns the index. What is done already is kept.

    Raises `UserError` where nothing is named, where a tokenizer has no end-of-text token, or where the folder was begun
    with another tokenizer, share or evaluation sets.
    """
    require(data.shards is not None, "data.shards", "null", fix="name the folder in which the shards shall lie")
    require(bool(data.sources), "data.sources", "{}", fix="name at least one source")
    assert data.shards is not None
    folder = Path(data.shards)
    parts = [part for name, source in data.sources.items() for part in parts_of(name, source)]
    folder.mkdir(parents=True, exist_ok=True)
    ngrams = _evaluation_ngrams(folder, evaluation_files)
    settings = {
        "tokenizer": data.tokenizer or {"trained": data.vocab_size},
        "validation": validation,
        "ngrams": None if ngrams is None else hashlib.sha256(ngrams.read_bytes()).hexdigest(),
        "parts": [asdict(part) for part in parts],
    }
    begun = folder / "preparation.json"
    if begun.exists() and json.loads(begun.read_text()) != settings:
        raise UserError(
            f"data.shards={folder}: it was begun with another tokenizer, other sources, another validation share or "
            "other evaluation sets; name another folder, or delete it"
        )
    _tokenizer(data, parts, folder)
    begun.write_text(json.dumps(settings))
    tokenizer = json.loads((folder / "tokenizer" / "shaping.json").read_text())
    end, vocabulary = tokenizer["end_of_text"], tokenizer["vocabulary"]
    preparation = Preparation(str(folder), validation, None if ngrams is None else str(ngrams))
    records = {part: _record(folder, part) for part in parts}
    missing = [part for part, record in records.items() if record is None]
    with ProcessPoolExecutor(processes, get_context("spawn"), _start_worker, (preparation,)) as pool:
        work = {pool.submit(_prepare_part, part, preparation, end, vocabulary): part for part in missing}
        try:
            for future in as_completed(work):
                records[work[future]] = future.result()
                done = sum(record is not None for record in records.values())
                progress(done, len(parts), records[work[future]] or {})
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return _write_index(folder, records, tokenizer)


def _record(folder: Path, part: Part) -> dict[str, Any] | None:
    path = folder / part.source / f"{part.name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def _write_index(folder: Path, records: dict[Part, dict[str, Any] | None], tokenizer: dict[str, Any]) -> Path:
    sources: dict[str, dict[str, list[Any]]] = {}
    for part, record in records.items():
        assert record is not None
        splits = sources.setdefault(part.source, {split: [] for split in SPLITS})
        for split, shard in record["shards"].items():
            splits[split].append(shard)
    totals = {
        key: sum(record[key] for record in records.values() if record)
        for key in ("documents", "characters", "contaminated")
    }
    index = {"format": FORMAT, **tokenizer, **totals, "sources": sources}
    path = folder / "index.json"
    path.with_suffix(".tmp").write_text(json.dumps(index, indent=1))
    path.with_suffix(".tmp").rename(path)
    return path


def _evaluation_ngrams(folder: Path, files: list[str]) -> Path | None:
    """The n-grams of all texts in evaluation sets (JSONL: every string of every record), as one sorted file."""
    if not files:
        return None
    found = []
    for name in files:
        require(os.path.isfile(name), "--decontaminate", name, fix="there is no such file")
        with _opened(name) as file:
            for number, line in enumerate(file, start=1):
                try:
                    record = json.loads(line)
                except ValueError as error:
                    raise UserError(f"--decontaminate={name}: line {number} is not JSON ({error})") from error
                values = record.values() if isinstance(record, dict) else [record]
                texts = [value for value in values if isinstance(value, str)]
                found += [hashes for text in texts if len(hashes := ngram_hashes(text)) and _is_long(text)]
    path = folder / "evaluation-ngrams.npy"
    np.save(path, np.unique(np.concatenate(found)) if found else np.array([], np.uint64))
    return path


def _is_long(text: str) -> bool:
    """Whether a text has `NGRAM` words: a shorter one, such as an answer, would be found everywhere."""
    return len(WORD.findall(text)) >= NGRAM


def _tokenizer(data: DataConfig, parts: list[Part], folder: Path) -> None:
    """`folder / tokenizer`: the one that `data.tokenizer` names, or one trained on the first documents."""
    place = folder / "tokenizer"
    if (place / "shaping.json").exists():
        return
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    from pipelines.data.corpus import END_OF_TEXT, train_tokenizer

    if data.tokenizer:
        try:
            tokenizer = AutoTokenizer.from_pretrained(data.tokenizer)
        except (OSError, ValueError) as error:
            message = str(error).splitlines()[0]
            raise UserError(f"data.tokenizer={data.tokenizer}: it cannot be loaded ({message})") from error
    else:
        backend = train_tokenizer(list(_first_documents(parts)), data.vocab_size)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)
    if tokenizer.eos_token_id is None:
        raise UserError(f"data.tokenizer={data.tokenizer}: it has no end-of-text token, which begins every document")
    beside = folder / ".tokenizer"
    shutil.rmtree(beside, ignore_errors=True)
    tokenizer.save_pretrained(beside)
    if not (beside / "tokenizer.json").exists():
        raise UserError(f"data.tokenizer={data.tokenizer}: it is not a fast tokenizer (it has no tokenizer.json)")
    content = {
        "tokenizer": hashlib.sha256((beside / "tokenizer.json").read_bytes()).hexdigest(),
        "vocabulary": len(tokenizer),
        "end_of_text": tokenizer.eos_token_id,
    }
    (beside / "shaping.json").write_text(json.dumps(content))
    shutil.rmtree(place, ignore_errors=True)
    beside.rename(place)


def _first_documents(parts: list[Part]) -> Iterator[str]:
    sources = {part.source for part in parts}
    for source in sorted(sources):
        left = TRAINED_ON // len(sources)
        for part in (part for part in parts if part.source == source):
            for text in documents_of(part):
                if left <= 0:
                    break
                left -= len(text)
                yield text
