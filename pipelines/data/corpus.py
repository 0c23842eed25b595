"""Text and tasks as tokens: built once, cached by content, and cut into rows.

The text is the docstrings of installed packages, the tasks are generated (`pipelines.tasks.families`), and a byte-level
BPE is trained on both. Everything is split by the hash of the question or of the document. The folder in the cache is
named by a hash of everything that determines its content. The first process that needs it builds it under a lock; every
reader checks the hashes of its files.

A row begins where a document begins or, inside a long document, where the previous row ended: a model that sees tasks
cut at random learns to write well-formed steps about operands that it has not seen.
"""

import importlib.metadata
import json
import logging
import random
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pipelines.configuration import DATA_VERSION
from pipelines.configuration.data import DataConfig, text_versions
from pipelines.configuration.signed_content import signed_content
from pipelines.configuration.start_checkpoint import read_tokenizer
from pipelines.data.docstrings import Document, docstrings
from pipelines.data.token_shards import ShardRows, TokenShards, token_type
from pipelines.data.tokenizer import (
    END_OF_TEXT,
    StartTokenizer,
    document_encoder,
    document_start,
    encode,
    train_tokenizer,
    with_document_start,
)
from pipelines.errors import StageFailure, UserError, require_option
from pipelines.files import (
    UnreadableError,
    cannot_write,
    current_umask,
    read_sealed,
    remove_leftovers,
    replacing,
    sealed,
    sha256,
    sha256_of,
    unreadable,
)
from pipelines.python_gc import no_collection
from pipelines.tasks.families import SPLITS, Problem, generate, split_of

Tokens = NDArray[np.uint16] | NDArray[np.uint32]

logger = logging.getLogger("pipelines")


class Corpus:
    """A data set in the cache: tokenizer, problems, documents, and tokens by source and split.

    Raises `UserError` or `StageFailure` if a file of the cache is missing or has changed.
    """

    def __init__(self, folder: Path, shards: TokenShards | None = None, start: StartTokenizer | None = None) -> None:
        """`start` is the tokenizer of a start checkpoint, in place of the corpus's own."""
        self.folder, self._shards, self._start = folder, shards, start
        fix = f"delete the folder {folder}; the next run builds it again"
        self.manifest = read_sealed(folder / "manifest.json", ("content", "files"), fix)
        if sha256_of(self.manifest["content"])[:16] != folder.name:
            raise StageFailure(f"{folder}: its manifest is that of other data; {fix}")
        for name, expected in self.manifest["files"].items():
            path = folder / name
            try:
                actual = sha256(path) if path.is_file() else "missing"
            except PermissionError as error:
                raise unreadable(path, error) from error
            if actual != expected:
                raise StageFailure(
                    f"{path}: its sha256 is {actual[:12]}, not {expected[:12]} as in its manifest; {fix}"
                )

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer; that of the data begins documents and ends responses with its end-of-text token."""
        if self._start:
            return self._start.load()
        if self._shards:
            tokenizer = AutoTokenizer.from_pretrained(self._shards.folder / "tokenizer", local_files_only=True)
            assert isinstance(tokenizer, PreTrainedTokenizerFast)
            return with_document_start(tokenizer)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(self.folder / "tokenizer.json"), eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
        )
        return with_document_start(tokenizer)

    @property
    def saved_tokenizer(self) -> StartTokenizer | PreTrainedTokenizerFast:
        """What saves the tokenizer into a checkpoint: that of a start checkpoint as it was there."""
        return self._start or self.tokenizer

    @property
    def document_start(self) -> int:
        """The token that begins every document."""
        return self._shards.index["end_of_text"] if self._shards else document_start(self.tokenizer)

    @cached_property
    def _problems(self) -> list[dict[str, Any]]:
        return json.loads((self.folder / "problems.json").read_text())

    @cached_property
    def _documents(self) -> list[Document]:
        return [Document(**row) for row in json.loads((self.folder / "documents.json").read_text())]

    def problems(self, family: str, split: str, count: int | None = None) -> list[Problem]:
        """Returns the first `count` problems of one family in one split, by default all, in a fixed order."""
        rows = (row for row in self._problems if row["family"] == family and split_of(row["question"]) == split)
        return [Problem(**{**row, "steps": tuple(row["steps"])}) for row in islice(rows, count)]

    def documents(self, split: str) -> list[Document]:
        """Returns the documents of one split, in a fixed order."""
        return [document for document in self._documents if document.split == split]

    def training_texts(self, sources: list[str]) -> Iterator[str]:
        """Yields the training documents of `sources`: `text`, task families, or sources of the token shards.

        Raises `UserError` for any other source, which would seem to contain nothing.
        """
        for source in sources:
            if self._shards and source in self._shards.sources:
                yield from map(self.tokenizer.backend_tokenizer.decode, self._shards.document_tokens(source, "train"))
                continue
            require_option("source", source, ["text", *self.manifest["content"]["tasks"]])
            if source == "text":
                yield from (document.training_text for document in self.documents("train"))
            else:
                yield from (problem.prompt + problem.worked for problem in self.problems(source, "train"))

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of `text` after the token that begins every document; see `tokenizer.encode`."""
        return encode(self.tokenizer, text)

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids with which a model is asked these questions, in the chat template if there is one."""
        if self._start is None or not self._start.chat:
            return [ids or [self.document_start] for ids in self.tokenizer(list(texts))["input_ids"]]
        messages = [[{"role": "user", "content": text}] for text in texts]
        template: Any = self.tokenizer.apply_chat_template
        prompts: list[list[int]] = template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        return prompts

    @property
    def top_k(self) -> int:
        """Size of the head for this vocabulary, in tokens."""
        return self.manifest["content"]["top_k"]

    @property
    def sharded(self) -> bool:
        """Whether there are token shards. They may have too many rows to write their order out."""
        return self._shards is not None

    def document_tokens(self, split: str) -> list[Tokens]:
        """Returns the tokens of each of `documents(split)`: `encode` of its `training_text`."""
        with np.load(self.folder / "tokens.npz") as arrays:
            tokens, starts = arrays[f"text-{split}"], arrays[f"text-{split}-starts"]
        return np.split(tokens[:-1], starts[1:])

    def rows(self, source: str, split: str, length: int) -> Tokens | ShardRows:
        """Returns all rows of a source, shape [rows, length + 1]: the inputs and, one token further, the targets.

        The source is `text`, a task family, or a source of the token shards.
        """
        if self._shards and source in self._shards.sources:
            return self._shards.rows(source, split, length)
        return self.rows_with_documents(source, split, length)[0]

    def rows_with_documents(self, source: str, split: str, length: int) -> tuple[Tokens, NDArray[np.int64]]:
        """Returns the rows and, for each of their tokens, the index of its document in `documents(split)`.

        Both have shape [rows, length + 1]. The token that ends the last document belongs to that document.
        """
        with np.load(self.folder / "tokens.npz") as arrays:
            tokens, starts = arrays[f"{source}-{split}"], arrays[f"{source}-{split}-starts"]
        # [rows, 1] + [length + 1] -> the index of every token of every row
        indices = row_starts(starts, len(tokens), length)[:, None] + np.arange(length + 1)
        return tokens[indices], np.searchsorted(starts, indices, side="right") - 1

    def rows_of_texts(self, texts: list[str], length: int) -> Tokens:
        """Returns the rows [rows, length + 1] of texts that are not in the corpus, made like those of its documents."""
        begin, end = self.document_start, self.tokenizer.eos_token_id
        tokenizer = document_encoder(self.folder / "tokenizer.json")
        tokens, starts = _encode(texts, tokenizer, begin=begin, end=end)
        return tokens[row_starts(starts, len(tokens), length)[:, None] + np.arange(length + 1)]


def row_starts(document_starts: NDArray[np.int64], tokens: int, length: int) -> NDArray[np.int64]:
    """Returns the indices at which rows of `length` + 1 tokens begin.

    `document_starts` are the indices, ascending, at which documents begin in the `tokens` tokens. A row begins at the
    document that the previous row cut off, so that no document is lost; inside a document that is too long for one row,
    it begins where the previous row ended.
    """
    starts = []
    start = 0
    while start + length + 1 <= tokens:
        starts.append(start)
        end = start + length  # the last token of this row is the first input of a row that follows directly
        last_document = int(document_starts[np.searchsorted(document_starts, end, side="right") - 1])
        start = last_document if last_document > start else end
    return np.array(starts, dtype=np.int64)


def prepare(config: DataConfig, cache: Path, start: StartTokenizer | None = None) -> Corpus:
    """Returns the corpus of `config`, built under a lock if it is not in `cache` yet or one of its files has changed.

    With `start` it is made of the tokens of a start checkpoint. Raises `UserError` or `StageFailure` if `cache` cannot
    be written, or if the token shards are not complete or have other tokens than `start`.
    """
    shards = TokenShards(config.shards) if config.shards else None
    if shards and start:
        _check_same_tokens(shards, start)
    content = _content(config, shards) | ({"start": start.content} if start else {})
    key = sha256_of(content)[:16]
    folder = cache / key
    if corpus := _whole(folder, shards, start):
        return corpus
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # Several stage runs may need the corpus at once: the first builds it, the others wait.
        with FileLock(cache / f"{key}.lock", mode=0o666 & ~current_umask()):
            if corpus := _whole(folder, shards, start):
                return corpus
            remove_leftovers(cache, key)
            with replacing(folder) as temporary:
                temporary.mkdir()
                _build(config, temporary, content=content, shards=shards, start=start)
    except OSError as error:
        raise cannot_write(folder, error) from error
    return Corpus(folder, shards, start)


def _check_same_tokens(shards: TokenShards, start: StartTokenizer) -> None:
    """Raise `StageFailure` if token shards were made with another vocabulary than that of the start checkpoint."""
    folders = (shards.folder / "tokenizer", start.folder)
    ours, theirs = (read_tokenizer(folder).get_vocab() for folder in folders)
    if ours != theirs:
        raise StageFailure(
            f"data.shards={shards.folder}: its tokens are not those of start.checkpoint; prepare the shards with "
            "data.tokenizer=CHECKPOINT"
        )


def _whole(folder: Path, shards: TokenShards | None, start: StartTokenizer | None) -> Corpus | None:
    """The corpus in `folder`, or None if it has to be built: it is missing, or a file of it was changed.

    Raises `UserError` if it cannot be read.
    """
    try:
        return Corpus(folder, shards, start)
    except FileNotFoundError:
        return None
    except UnreadableError:
        raise
    except (UserError, StageFailure) as error:
        logger.warning("%s", str(error).split("; ")[0] + "; it is built again")
        return None


def _content(config: DataConfig, shards: TokenShards | None) -> dict[str, Any]:
    """Everything that determines the files of a corpus; its hash names the folder, so existing keys must not change."""
    content = signed_content(config) | {
        "version": DATA_VERSION,
        "name": None,
        "shards": shards and shards.index["tokenizer"],
        "text_versions": text_versions(config),
        "tokenizers": importlib.metadata.version("tokenizers"),
    }
    # Sources and tokenizer determine only the shards, whose tokenizer is in `shards`; mixtures draw from the corpus.
    del content["sources"], content["tokenizer"], content["mixtures"]
    return content


@no_collection()
def _build(
    config: DataConfig,
    folder: Path,
    *,
    content: dict[str, Any],
    shards: TokenShards | None,
    start: StartTokenizer | None,
) -> None:
    # Documents and problems; a problem's text is its prompt with one kind of answer.
    documents = [document for package in config.text for document in docstrings(package)]
    random.Random(config.seed).shuffle(documents)
    problems = [p for family in config.tasks for p in generate(family, config.tasks_per_family, config.seed)]
    problem_texts = {p.question: _training_text(p, config) for p in problems}
    # source -> split -> its documents
    texts = {"text": {split: [d.training_text for d in documents if d.split == split] for split in SPLITS}}
    for family in config.tasks:
        texts[family] = {
            split: [problem_texts[p.question] for p in problems if p.family == family and split_of(p.question) == split]
            for split in SPLITS
        }
    # The tokenizer of the shards or of the start checkpoint, or one trained on all training documents.
    if shards:
        tokenizer = document_encoder(shards.folder / "tokenizer" / "tokenizer.json")
        begin = end = shards.index["end_of_text"]
    elif start:
        tokenizer, loaded = document_encoder(start.folder / "tokenizer.json"), start.load()
        begin, end = document_start(loaded), loaded.eos_token_id
    else:
        tokenizer = train_tokenizer([text for splits in texts.values() for text in splits["train"]], config.vocab_size)
        begin = end = tokenizer.token_to_id(END_OF_TEXT)
    # Tokens and document starts of each source and split, in one file.
    arrays: dict[str, NDArray[Any]] = {}
    for split in SPLITS:
        for source in texts:
            tokens, starts = _encode(texts[source][split], tokenizer, begin=begin, end=end)
            arrays[f"{source}-{split}"], arrays[f"{source}-{split}-starts"] = tokens, starts
    tokenizer.save(str(folder / "tokenizer.json"))
    np.savez(folder / "tokens.npz", **arrays)  # type: ignore[arg-type]
    (folder / "problems.json").write_text(json.dumps([vars(p) for p in problems]))
    (folder / "documents.json").write_text(json.dumps([vars(d) for d in documents]))
    # The manifest comes last: it has the hashes of the other files.
    manifest = {
        "content": content,
        "vocabulary": tokenizer.get_vocab_size(),
        "tokens": {name: len(array) for name, array in arrays.items() if not name.endswith("-starts")},
        "problems": {split: sum(split_of(p.question) == split for p in problems) for split in SPLITS},
        "overlap": overlap(problems, documents),
        "files": {path.name: sha256(path) for path in sorted(folder.iterdir())},
    }
    (folder / "manifest.json").write_bytes(sealed(manifest))


def _encode(
    texts: list[str], tokenizer: Tokenizer, *, begin: int, end: int
) -> tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.int64]]:
    """The tokens of all texts between those that begin and end a document; and the index of each text.

    Where one token does both, it is between two texts once, and once more at the end.
    """
    dtype = token_type(tokenizer.get_vocab_size())
    last = [] if begin == end else [end]
    pieces = [[begin, *encoding.ids, *last] for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
    tokens = np.fromiter((token for piece in pieces for token in piece), dtype=dtype, count=lengths.sum())
    return (np.append(tokens, dtype.type(end)) if begin == end else tokens), np.cumsum(lengths) - lengths


def overlap(problems: list[Problem], documents: list[Document]) -> int:
    """Returns how many questions and documents are in more than one split."""
    splits: dict[str, set[str]] = {}
    for problem in problems:
        splits.setdefault(problem.question, set()).add(split_of(problem.question))
    for document in documents:
        splits.setdefault(document.text, set()).add(document.split)
    return sum(len(names) > 1 for names in splits.values())


def _training_text(problem: Problem, config: DataConfig) -> str:
    """Prompt and response. The kind of response depends only on the question and the seed of the data."""
    rng = random.Random(f"mode/{config.seed}/{problem.question}")
    if rng.random() < config.worked_share:
        return problem.prompt + problem.worked
    return problem.prompt + (problem.careless if rng.random() < config.careless_share else problem.outright)
