"""What is trained on and asked: text, generated tasks, token shards; and the tokenizer."""

from dataclasses import dataclass, field
from importlib.metadata import distributions
from importlib.util import find_spec

from omegaconf import MISSING

from pipelines.errors import nearest, require, require_fraction, require_positive
from pipelines.tasks import reasoning_gym
from pipelines.tasks.families import FAMILIES

SOURCE_KINDS = ("hub", "jsonl", "parquet", "text")


@dataclass
class SourceConfig:
    """A corpus that `shaping-data prepare` turns into token shards."""

    kind: str = MISSING
    """`hub`: a data set of the Hugging Face Hub, streamed; `jsonl`, `parquet` and `text`: files."""
    path: str = MISSING
    """The data set's name, or a glob of files (`.gz` is unpacked); a text file holds documents between blank lines."""
    subset: str | None = None
    """Configuration of the data set (`hub`)."""
    split: str = "train"
    """Split of the data set (`hub`)."""
    column: str = "text"
    """Field of a record that holds the document."""
    revision: str | None = None
    """Commit of the data set (`hub`)."""


@dataclass
class DataConfig:
    """Text, generated tasks and the tokenizer trained on them; or token shards, made by `shaping-data prepare`."""

    name: str = MISSING
    text: list[str] = field(default_factory=lambda: ["sympy", "networkx"])
    """Installed packages whose docstrings are the text."""
    tasks: list[str] = MISSING
    """Families of generated reasoning tasks (names of `pipelines.tasks.families.FAMILIES`)."""
    tasks_per_family: int = MISSING
    """Distinct questions generated for each family, before they are split by hash."""
    worked_share: float = MISSING
    """Share of training answers that show their steps; the others state an answer outright."""
    careless_share: float = MISSING
    """Share of the outright answers that are wrong."""
    vocab_size: int = MISSING
    top_k: int = MISSING
    """Size of the head at this vocabulary; objectives take it unless they name their own."""
    seed: int = 0
    """Seed of the generated tasks: one data set for all cells, whatever their own seed."""
    shards: str | None = None
    """Folder of token shards, whose tokenizer is then used and whose sources can be mixed; null: none."""
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """What `shaping-data prepare` reads, by the name that mixtures use."""
    tokenizer: str | None = None
    """A tokenizer of the Hub or a folder of one; null: a byte-level BPE of `vocab_size` is trained on the data."""

    def __post_init__(self) -> None:
        for package in self.text:
            require(
                find_spec(package) is not None, "data.text", package, fix="no such package is installed; pip install it"
            )
            require(
                any(distributions(name=package)),
                "data.text",
                package,
                fix="its version goes into signatures, and no distribution of that name is installed; name another package",
            )
        for name, source in self.sources.items():
            kind = source.kind
            require(kind in SOURCE_KINDS, f"data.sources.{name}.kind", kind, fix=nearest(kind, SOURCE_KINDS))
        for task in self.tasks:
            if reasoning_gym.is_gym(task):
                reasoning_gym.check(task)
            else:
                require(task in FAMILIES, "data.tasks", task, fix=nearest(task, FAMILIES))
        require_positive("data", self, "tasks_per_family", "vocab_size", "top_k")
        require_fraction("data", self, "worked_share", "careless_share")
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
