"""Training data: text, generated tasks, token shards, and the tokenizer."""

import importlib.metadata
import json
import os
import string
from dataclasses import dataclass, field
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

from omegaconf import MISSING

from pipelines.errors import UserError, require, require_fraction, require_option, require_positive
from pipelines.files import sha256, sha256_of
from pipelines.tasks import reasoning_gym
from pipelines.tasks.families import FAMILIES

SOURCE_KINDS = ("hub", "jsonl", "parquet", "text")


@dataclass
class SourceConfig:
    """A corpus that `shaping-data prepare` turns into token shards."""

    kind: str = MISSING
    """`hub`: a data set of the Hugging Face Hub, streamed; `jsonl`, `parquet` or `text`: files."""
    path: str = MISSING
    """Name of the data set; or a file, a glob of files, or a folder, of which all files of the kind below it are read.
    `.gz` and `.zst` are decompressed. Blank lines separate documents of text."""
    subset: str | None = None
    """Configuration of the data set (`hub`); null: its default."""
    split: str = "train"
    """Split of the data set (`hub`)."""
    column: str = "text"
    """Field of a record that holds the document."""
    revision: str | None = None
    """Commit of the data set (`hub`); null: the newest."""
    template: str | None = None
    """Several fields as one document, for example "Question: {question}\\nAnswer: {answer}"; null: `column` alone."""
    strict: bool = False
    """Whether a record without text ends the preparation; false: such records are counted and passed over."""
    tokens: int | None = None
    """About how many tokens are taken, in whole parts; null: all."""

    @property
    def fields(self) -> list[str]:
        """The fields of a record that a document consists of."""
        return [self.column] if self.template is None else template_fields(self.template)

    def setting(self, field: str) -> str:
        """Returns the key and value that name a field."""
        return f"column={field}" if self.template is None else f"template={self.template!r}"


def template_fields(template: str) -> list[str]:
    """Returns the fields that a template names, each once. Raises `ValueError` for one that is more than a name."""
    names = []
    for _, name, form, conversion in string.Formatter().parse(template):
        if name is None:
            continue
        if form or conversion or not name or name.isdigit() or set(name) & set("[].{}"):
            raise ValueError(f"{{{name}}} is not the name of a field in braces")
        names.append(name)
    return list(dict.fromkeys(names))


@dataclass
class MixturesConfig:
    """Weights of the sources of some data, for `pretrain.mixture` and `midtrain.mixture`."""

    pretrain: dict[str, float] = field(default_factory=dict)
    """Those of pre-training."""
    midtrain: dict[str, float] = field(default_factory=dict)
    """Those of mid-training."""


@dataclass
class DataConfig:
    """Text, generated tasks and a tokenizer trained on both; or token shards, made by `shaping-data prepare`.

    The paper's corpus is not public, so all values are ours.
    """

    name: str = MISSING
    """Label of the data set."""
    text: list[str] = field(default_factory=list)
    """Installed packages whose docstrings are the text."""
    tasks: list[str] = field(default_factory=list)
    """Families of generated reasoning tasks: names of `pipelines.tasks.families.FAMILIES`, or `gym_` families."""
    tasks_per_family: int = 16_000
    """Number of distinct questions generated per family, before the split by hash."""
    worked_share: float = 0.5
    """Share of training answers that show their steps, in [0, 1]; the others only state the answer."""
    careless_share: float = 0.5
    """Share of the answers without steps that are wrong, in [0, 1]."""
    vocab_size: int = 32_768
    """Size of the tokenizer's vocabulary; with `shards`, the size to which the model's vocabulary is padded."""
    top_k: int = 100
    """Size k of the objective's head for this vocabulary, in tokens; objectives may override it."""
    seed: int = 0
    """Seed of the generated tasks. Independent of the cell's seed, so that all cells share one data set."""
    shards: str | None = None
    """Folder of token shards, whose tokenizer is used and whose sources can be mixed in; null: none."""
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """Corpora that `shaping-data prepare` reads, by the name that mixtures use."""
    mixtures: MixturesConfig = field(default_factory=MixturesConfig)
    """Mixtures of these data for the stages whose `mixture` names no other."""
    tokenizer: str | None = None
    """Tokenizer of the token shards: a name on the Hub or a folder; null: train a byte-level BPE of `vocab_size`."""

    def __post_init__(self) -> None:
        self.shards = self.shards and os.path.expanduser(self.shards)
        require_positive("data", self, "tasks_per_family", "vocab_size", "top_k")
        require_fraction("data", self, "worked_share", "careless_share")
        self._check_text()
        self._check_tasks()
        self._check_vocabulary()
        for name, source in self.sources.items():
            _check_source(f"data.sources.{name}", source)

    def _check_text(self) -> None:
        for package in self.text:
            try:
                spec = find_spec(package)
            except (ImportError, ValueError):  # of a.b without a, or of no name at all
                spec = None
            require(spec is not None, "data.text", package, fix="no such package is installed; pip install it")
            assert spec is not None
            require(spec.origin is not None, "data.text", package, fix="it is a namespace package; name one with files")
            require(
                any(distributions(name=package)),
                "data.text",
                package,
                fix="its version is part of signatures, and no distribution of that name is installed; "
                "choose another package",
            )

    def _check_tasks(self) -> None:
        for task in self.tasks:
            if reasoning_gym.is_gym(task):
                reasoning_gym.check(task)
            else:
                require_option("data.tasks", task, FAMILIES)

    def _check_vocabulary(self) -> None:
        require(
            self.vocab_size > 257,
            "data.vocab_size",
            self.vocab_size,
            fix="it must hold the 256 bytes and the special tokens: 258 or more",
        )
        require(
            self.top_k <= self.vocab_size,
            "data.top_k",
            self.top_k,
            fix=f"a head is part of the vocabulary: at most data.vocab_size={self.vocab_size}",
        )


def _check_source(key: str, source: SourceConfig) -> None:
    require_option(f"{key}.kind", source.kind, SOURCE_KINDS)
    require(source.tokens is None or source.tokens > 0, f"{key}.tokens", source.tokens, fix="it must be above 0")
    if source.template is None:
        return
    fix = 'name fields in braces, as in "Question: {question}\\nAnswer: {answer}"; other braces are doubled'
    try:
        has_fields = bool(template_fields(source.template))
    except ValueError as error:
        raise UserError(f"{key}.template={source.template!r}: {error}; {fix}") from error
    require(has_fields, f"{key}.template", repr(source.template), fix=f"it names no field; {fix}")
    require(source.kind != "text", f"{key}.template", repr(source.template), fix="files of text have no fields")


def text_versions(data: DataConfig) -> dict[str, str]:
    """Returns the versions of the packages that make the corpus; another version makes another one.

    These are the packages whose docstrings are the text, reasoning-gym if a task is one of its families, and the
    sources of plugins' families.
    """
    plugins = {f"task family {task}": source for task in data.tasks if (source := _plugin_source(task))}
    packages = [*data.text, *(["reasoning_gym"] if any(map(reasoning_gym.is_gym, data.tasks)) else [])]
    return {name: _version(name) for name in packages} | plugins


def _plugin_source(task: str) -> str | None:
    return None if reasoning_gym.is_gym(task) else FAMILIES[task].source


def _version(package: str) -> str:
    """The version of an installed package; of one that is installed to be edited, also the hash of its content."""
    version = importlib.metadata.version(package)
    url = importlib.metadata.distribution(package).read_text("direct_url.json")
    spec = find_spec(package)
    if url is None or spec is None or not json.loads(url).get("dir_info", {}).get("editable"):
        return version
    origin = Path(str(spec.origin))
    files = sorted(origin.parent.rglob("*.py")) if spec.submodule_search_locations else [origin]
    return f"{version}+{sha256_of([sha256(file) for file in files])[:16]}"
