"""Text and tasks as tokens: built once, cached by content, cut into rows, mixed by weight.

The text is the docstrings of installed packages (torch brings sympy and networkx along), the tasks are generated
(`pipelines.tasks.families`), and a byte-level BPE with single digits is trained on both. Everything is split by hash
of the question or of the document. The cache's folder is named by a hash of all that went in; whoever comes first
builds it under a lock, and whoever reads it checks its hashes.

A row begins where a document begins, or, inside a long document, where the row before ended: a model that meets
tasks cut at random learns to write well-formed steps about operands it has never seen.
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import random
import shutil
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pipelines.configuration.data import DataConfig
from pipelines.data.token_shards import ShardRows, TokenShards, token_type
from pipelines.errors import StageFailure
from pipelines.garbage_collection import no_collection
from pipelines.tasks.families import SPLITS, Problem, generate, split_of

DATA_VERSION = 1
"""Raised by hand when the code here changes what is built."""

END_OF_TEXT = "<|endoftext|>"
SHORTEST_DOCUMENT = 200
"""Characters below which a docstring says too little to learn from."""

Tokens = NDArray[np.uint16] | NDArray[np.uint32]


@dataclass(frozen=True)
class Document:
    """A docstring and the module it stands in."""

    module: str
    text: str

    @property
    def training_text(self) -> str:
        """The docstring under a heading that names its module."""
        return f"# {self.module}\n{self.text}"

    @property
    def split(self) -> str:
        """The split of the text; documents have no RL, so that share is trained on too."""
        split = split_of(self.text)
        return "train" if split == "rl" else split


class Corpus:
    """A data set in the cache: tokenizer, problems, documents, and tokens by source and split."""

    def __init__(self, folder: Path, shards: TokenShards | None = None) -> None:
        self.folder, self._shards = folder, shards
        again = f"delete the folder {folder}, and the next run builds it again"
        try:
            self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
            files = {name: (_sha256(folder / name), expected) for name, expected in self.manifest["files"].items()}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StageFailure(f"{folder}: it is not whole any more ({error}); {again}") from error
        for name, (found, expected) in files.items():
            if found != expected:
                raise StageFailure(
                    f"{folder / name}: its sha256 is {found[:12]} and its manifest says {expected[:12]}; {again}"
                )

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer; a document begins, and a response ends, with its end-of-text token."""
        if self._shards:
            tokenizer = AutoTokenizer.from_pretrained(self._shards.folder / "tokenizer", local_files_only=True)
            assert isinstance(tokenizer, PreTrainedTokenizerFast)
            return tokenizer
        return PreTrainedTokenizerFast(
            tokenizer_file=str(self.folder / "tokenizer.json"), eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
        )

    @cached_property
    def _problems(self) -> list[dict[str, Any]]:
        return json.loads((self.folder / "problems.json").read_text())

    @cached_property
    def _documents(self) -> list[Document]:
        return [Document(**row) for row in json.loads((self.folder / "documents.json").read_text())]

    def problems(self, family: str, split: str, count: int | None = None) -> list[Problem]:
        """The problems of one family in one split, in a fixed order; the first `count` of them."""
        rows = (row for row in self._problems if row["family"] == family and split_of(row["question"]) == split)
        return [Problem(**{**row, "steps": tuple(row["steps"])}) for row in islice(rows, count)]

    def documents(self, split: str) -> list[Document]:
        """The documents of one split, in a fixed order."""
        return [d for d in self._documents if d.split == split]

    def training_texts(self, sources: list[str]) -> Iterator[str]:
        """What training on `sources` (`text`, or families) shows, document by document."""
        for source in sources:
            if source == "text":
                yield from (document.training_text for document in self.documents("train"))
            else:
                yield from (p.prompt + p.worked for p in self.problems(source, "train"))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` after the end-of-text token that begins every document."""
        return [self.tokenizer.eos_token_id, *self.tokenizer.encode(text, add_special_tokens=False)]

    @property
    def sharded(self) -> bool:
        """Whether there are token shards, whose order is computed rather than written out."""
        return self._shards is not None

    def document_tokens(self, split: str) -> list[Tokens]:
        """The tokens of each of `documents(split)`, as `encode` gives them for its `training_text`."""
        with np.load(self.folder / "tokens.npz") as arrays:
            tokens, starts = arrays[f"text-{split}"], arrays[f"text-{split}-starts"]
        return np.split(tokens[:-1], starts[1:])

    def rows(self, source: str, split: str, length: int) -> Tokens | ShardRows:
        """All rows of one source (`text`, a family or a source of the shards), [rows, length + 1]: inputs and, one
        further, targets."""
        if self._shards and source in self._shards.sources:
            return self._shards.rows(source, split, length)
        return self.rows_with_documents(source, split, length)[0]

    def rows_with_documents(self, source: str, split: str, length: int) -> tuple[Tokens, NDArray[np.int64]]:
        """The rows, and the number of the document that each of their tokens belongs to, in the order of
        `documents(split)`; what ends the last document belongs to it too. Both [rows, length + 1]."""
        with np.load(self.folder / "tokens.npz") as arrays:
            tokens, starts = arrays[f"{source}-{split}"], arrays[f"{source}-{split}-starts"]
        places = row_starts(starts, len(tokens), length)[:, None] + np.arange(length + 1)
        return tokens[places], np.searchsorted(starts, places, side="right") - 1


def row_starts(documents: NDArray[np.int64], size: int, length: int) -> NDArray[np.int64]:
    """Where rows of `length` + 1 tokens begin in `size` tokens whose documents begin at `documents` (ascending).

    The next row begins at the document that a row cut off, so that none is lost; inside a document too long for one
    row it begins where the row before ended.
    """
    starts = []
    start = 0
    while start + length + 1 <= size:
        starts.append(start)
        end = start + length
        cut = int(documents[np.searchsorted(documents, end, side="right") - 1])
        start = cut if cut > start else end
    return np.array(starts, dtype=np.int64)


def prepare(config: DataConfig, cache: Path) -> Corpus:
    """The corpus of `config`, built under a lock if it is not in `cache` yet.

    Raises `StageFailure` where a cached file does not have the hash that it was written with, or token shards are not
    those that the configuration names.
    """
    shards = TokenShards(config.shards) if config.shards else None
    content = asdict(config) | {"version": DATA_VERSION, "name": None, "shards": shards and shards.index["tokenizer"]}
    del content["sources"], content["tokenizer"]
    content["text_versions"] = {name: importlib.metadata.version(name) for name in config.text}
    content["tokenizers"] = importlib.metadata.version("tokenizers")
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache / key
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{key}.lock"):
        if not (folder / "manifest.json").exists():
            beside = cache / f".{key}.{os.getpid()}"
            shutil.rmtree(beside, ignore_errors=True)  # of one that was killed, where process ids come round again
            beside.mkdir()
            _build(config, content, beside, shards)
            shutil.rmtree(folder, ignore_errors=True)
            beside.rename(folder)
    return Corpus(folder, shards)


@no_collection()
def _build(config: DataConfig, content: dict[str, Any], folder: Path, shards: TokenShards | None) -> None:
    documents = [document for package in config.text for document in docstrings(package)]
    random.Random(config.seed).shuffle(documents)
    problems = [p for family in config.tasks for p in generate(family, config.tasks_per_family, config.seed)]
    written = {p.question: _training_text(p, config) for p in problems}
    if shards:
        tokenizer = Tokenizer.from_file(str(shards.folder / "tokenizer" / "tokenizer.json"))
        end = shards.index["end_of_text"]
    else:
        tokenizer = train_tokenizer(
            [d.training_text for d in documents if d.split == "train"]
            + [written[p.question] for p in problems if split_of(p.question) == "train"],
            config.vocab_size,
        )
        end = tokenizer.token_to_id(END_OF_TEXT)
    assert end is not None
    kind = token_type(tokenizer.get_vocab_size())
    arrays: dict[str, NDArray[Any]] = {}
    for split in SPLITS:
        texts = {"text": [d.training_text for d in documents if d.split == split]}
        for family in config.tasks:
            chosen = [p for p in problems if p.family == family and split_of(p.question) == split]
            texts[family] = [written[p.question] for p in chosen]
        for source, parts in texts.items():
            pieces = [[end, *encoding.ids] for encoding in tokenizer.encode_batch(parts, add_special_tokens=False)]
            lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
            flat = np.fromiter((token for piece in pieces for token in piece), dtype=kind, count=lengths.sum())
            arrays[f"{source}-{split}"] = np.append(flat, kind.type(end))
            arrays[f"{source}-{split}-starts"] = np.cumsum(lengths) - lengths
    tokenizer.save(str(folder / "tokenizer.json"))
    np.savez(folder / "tokens.npz", **arrays)  # type: ignore[arg-type]
    (folder / "problems.json").write_text(json.dumps([vars(p) for p in problems]))
    (folder / "documents.json").write_text(json.dumps([vars(d) for d in documents]))
    manifest = {
        "content": content,
        "vocabulary": tokenizer.get_vocab_size(),
        "tokens": {name: len(array) for name, array in arrays.items() if not name.endswith("-starts")},
        "problems": {split: sum(split_of(p.question) == split for p in problems) for split in SPLITS},
        "overlap": overlap(problems, documents),
        "files": {path.name: _sha256(path) for path in sorted(folder.iterdir())},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


def overlap(problems: list[Problem], documents: list[Document]) -> int:
    """Questions and documents that stand in more than one split, counted on what was built."""
    seen: dict[str, set[str]] = {}
    for text, split in [
        *((p.question, split_of(p.question)) for p in problems),
        *((d.text, d.split) for d in documents),
    ]:
        seen.setdefault(text, set()).add(split)
    return sum(len(splits) > 1 for splits in seen.values())


def _training_text(problem: Problem, config: DataConfig) -> str:
    """Prompt and response; which kind of response it is depends on the question alone."""
    rng = random.Random(f"mode/{config.seed}/{problem.question}")
    if rng.random() < config.worked_share:
        return problem.prompt + problem.worked
    return problem.prompt + (problem.careless if rng.random() < config.careless_share else problem.outright)


def docstrings(package: str) -> list[Document]:
    """The distinct docstrings of an installed package's modules, classes and functions, read without importing it."""
    origin = importlib.util.find_spec(package)
    assert origin is not None
    assert origin.origin is not None
    root = Path(origin.origin).parent
    found: dict[str, Document] = {}
    for path in sorted(root.rglob("*.py")):
        if "tests" in path.parts:
            continue
        module = ".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__")
        for node in _outside_expressions(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                if len(text) >= SHORTEST_DOCUMENT:
                    found.setdefault(text, Document(module, text))
    return list(found.values())


def _outside_expressions(tree: ast.AST) -> Iterator[ast.AST]:
    """`ast.walk` without what stands in expressions, which hold no definition and are most of a file."""
    todo = deque([tree])
    while todo:
        node = todo.popleft()
        yield node
        todo.extend(child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr))


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE in which every digit is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
