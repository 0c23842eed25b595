"""A start checkpoint as planning sees it: its files, what identifies them, and what its `config.json` says.

Everything here is read from JSON and from the tokenizer's file, without torch. A folder is identified by the hash of
what would be loaded of it, a model on the Hub by its commit.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.files import sha256, sha256_of
from pipelines.tasks.formats import EXAMPLES, FORMATS

CONFIG = "config.json"
MODEL_FILES = (CONFIG, "generation_config.json")
TOKENIZER = "tokenizer.json"
CHAT_TEMPLATE = "chat_template.jinja"
TOKENIZER_FILES = (
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    CHAT_TEMPLATE,
)
"""Files of a tokenizer, of which a checkpoint has some."""
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CAUSAL = ("ForCausalLM", "LMHeadModel")
"""How the names of transformers' causal language models end."""
CODE = "*.py"
"""Files of a model's own code."""
NO_LIMIT = 1 << 20
"""Tokens that a model without positions, such as a recurrent one, is taken to read (`pipelines.rollouts`)."""
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
KEY = "start.checkpoint"

NAMES = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "d_model": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "num_heads"),
    "positions": ("max_position_embeddings", "n_positions"),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "active_experts": ("num_experts_per_tok", "moe_top_k"),
}
"""What is needed of a configuration -> how architectures call it."""


@dataclass(frozen=True)
class StartCheckpoint:
    """A checkpoint that was found and is a causal language model with a tokenizer."""

    folder: Path
    """The checkpoint; of a model on the Hub, its small files in the cache of huggingface_hub."""
    name: str | None = None
    """Its name on the Hub; None for a folder."""
    commit: str | None = None
    """Its commit on the Hub."""
    code: bool = False
    """Whether the Python files next to it are its model."""

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of `config.json`."""
        return _json(self.folder / CONFIG)

    @cached_property
    def shape(self) -> dict[str, Any]:
        """Its architecture in the words of `model`; see `shape_of`."""
        return shape_of(self.config)

    @property
    def vocabulary(self) -> int:
        """Rows of its token embedding."""
        return int(self.config["vocab_size"])

    @property
    def positions(self) -> int:
        """Tokens that it has positions for."""
        return int(_first(self.config, "positions") or NO_LIMIT)

    @property
    def content(self) -> dict[str, Any]:
        """What identifies it in a signature: the commit on the Hub, or the hash of its files."""
        code = {"code": self.code} if self.code else {}
        if self.name and self.commit:
            return {"hub": self.name, "revision": self.commit} | code
        return {"content": content_of(self.folder, code=self.code)} | code

    @property
    def tokenizer(self) -> str:
        """The hash of its tokenizer."""
        return tokenizer_content(self.folder)

    @property
    def has_chat_template(self) -> bool:
        """Whether its tokenizer has a chat template."""
        settings = self.folder / "tokenizer_config.json"
        named = settings.is_file() and _json(settings).get("chat_template")
        return bool(named) or (self.folder / CHAT_TEMPLATE).is_file()


def read_start(checkpoint: str, revision: str | None = None, *, code: bool = False) -> StartCheckpoint:
    """Returns the checkpoint that `start.checkpoint` names, checked; of one on the Hub, small files are downloaded.

    `code`: whether Python files next to it may be its model.

    Raises `UserError` if there is none, or if it is no causal language model of transformers with a tokenizer.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        return _from_hub(checkpoint, revision, code)
    if revision is not None:
        raise UserError(f"start.revision={revision}: {KEY}={checkpoint} is a folder, which has none; leave it out")
    found = StartCheckpoint(folder.absolute(), code=code and _names_own_code(folder))
    _check(found, checkpoint)
    weight_files(folder, f"{KEY}={checkpoint}")
    return found


@lru_cache(maxsize=64)
def _from_hub(name: str, revision: str | None, code: bool) -> StartCheckpoint:
    """The checkpoint of a model on the Hub, looked up once per process."""
    if not HUB_NAME.fullmatch(name):
        raise UserError(
            f"{KEY}={name}: there is no such folder; give a folder in Hugging Face format, or a name on the Hub such "
            "as Qwen/Qwen2.5-0.5B"
        )
    folder = download(name, revision, (*MODEL_FILES, *TOKENIZER_FILES, INDEX, *([CODE] if code else [])))
    found = StartCheckpoint(folder, name, folder.name, code and _names_own_code(folder))
    _check(found, name)
    return found


def download(name: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    """Returns the folder in huggingface_hub's cache with the files of a model that match `patterns`.

    Raises `UserError` with the way out if there is no such model, or if the Hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except GatedRepoError as error:
        raise UserError(
            f"{KEY}={name}: its owner has to grant access to it; ask on its page, then hf auth login"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"start.revision={revision}: {name} has no such branch, tag or commit; leave it out") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{KEY}={name}: there is no such folder and no such model on the Hub; give the path of a folder, or log in "
            "with hf auth login if it is private"
        ) from error
    except (OSError, ValueError, RuntimeError) as error:  # no network, no such host, offline mode
        raise UserError(
            f"{KEY}={name}: there is no such folder, and the Hub cannot be reached from here; download it elsewhere "
            f"with hf download {name} --local-dir FOLDER and give the folder: {KEY}=FOLDER"
        ) from error


def _check(found: StartCheckpoint, checkpoint: str) -> None:
    """Raise `UserError` if a checkpoint is no causal language model, or has no tokenizer that can be used."""
    key, folder = f"{KEY}={checkpoint}", found.folder
    if not (folder / CONFIG).is_file():
        if (folder / "adapter_config.json").is_file():
            raise UserError(f"{key}: it is an adapter without its model; merge them (peft's merge_and_unload) and save")
        raise UserError(f"{key}: it has no {CONFIG}; give a checkpoint in Hugging Face format (save_pretrained)")
    classes = found.config.get("architectures") or []
    if not any(str(name).endswith(CAUSAL) for name in classes):
        named = ", ".join(map(str, classes)) or "no class"
        raise UserError(f"{key}: its {CONFIG} names {named}, which is no causal language model; give a ...ForCausalLM")
    for name in ("layers", "d_model"):
        if _first(found.config, name) is None:
            raise UserError(f"{key}: its {CONFIG} has no {NAMES[name][0]}, so its size is unknown; save it again")
    _check_code(found, key)
    if not isinstance(found.config.get("vocab_size"), int):
        raise UserError(f"{key}: its {CONFIG} has no vocab_size; save it again with save_pretrained")
    if not (folder / TOKENIZER).is_file():
        raise UserError(
            f"{key}: it has no {TOKENIZER}; save its tokenizer into the folder: "
            "AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER)"
        )
    size = read_tokenizer(folder).get_vocab_size()
    if size > found.vocabulary:
        raise UserError(
            f"{key}: its tokenizer has {size} tokens and its model only {found.vocabulary}; give the tokenizer that it "
            "was trained with"
        )


def _names_own_code(folder: Path) -> bool:
    """Whether a checkpoint names code of its own as its model."""
    config = folder / CONFIG
    return config.is_file() and "AutoModelForCausalLM" in (_json(config).get("auto_map") or {})


def _check_code(found: StartCheckpoint, key: str) -> None:
    """Raise `UserError` for a model that only its own code can load, unless that code may run and is there."""
    if not _names_own_code(found.folder):
        return
    named = str(found.config["auto_map"]["AutoModelForCausalLM"])
    file = named.rpartition("--")[2].partition(".")[0] + ".py"
    if found.code:
        if "--" in named or not (found.folder / file).is_file():
            raise UserError(f"{key}: its model is {named}, and there is no {file} next to it; copy its code there")
    elif not _is_known(str(found.config.get("model_type"))):
        raise UserError(
            f"{key}: its model is code of its own ({file}), which would run with your rights; read it, then allow it "
            "with start.remote_code=true"
        )


def _is_known(model_type: str) -> bool:
    """Whether transformers has a model of this type; found without loading it, and with it torch."""
    spec = find_spec("transformers")
    folders = spec.submodule_search_locations if spec else None
    return any(Path(folder, "models", model_type.replace("-", "_")).is_dir() for folder in folders or [])


def weight_files(folder: Path, key: str) -> list[str]:
    """Returns the names of a checkpoint's files of weights, with their index if there are several.

    Raises `UserError`, which begins with `key`, if one is missing or if they are no safetensors.
    """
    if (folder / INDEX).is_file():
        names = [INDEX, *sorted(set(_json(folder / INDEX).get("weight_map", {}).values()))]
        for name in names:
            if Path(name).name != name or not (folder / name).is_file():
                raise UserError(f"{key}: {name} is named in {INDEX} and missing; download the checkpoint again")
        return names
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"{key}: it has no {WEIGHTS}; weights in other files are not read, so save it again: "
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(OTHER)"
        )
    return [WEIGHTS]


def imported_files(folder: Path, key: str, *, code: bool) -> list[str]:
    """Returns the names of the files of a checkpoint that are loaded; raises `UserError` as `weight_files` does.

    With `code` its Python files are among them.
    """
    small = [name for name in (*MODEL_FILES, *TOKENIZER_FILES) if (folder / name).is_file()]
    small += sorted(path.name for path in folder.glob(CODE)) if code else []
    return [*small, *weight_files(folder, key)]


def content_of(folder: Path, *, code: bool = False) -> str:
    """Returns the hash of all files of a checkpoint that are loaded, its Python files among them with `code`."""
    return _hash_of(folder, imported_files(folder, f"{KEY}={folder}", code=code))


def tokenizer_content(folder: Path) -> str:
    """Returns the hash of a checkpoint's tokenizer."""
    return _hash_of(folder, [name for name in TOKENIZER_FILES if (folder / name).is_file()])


def has_code(folder: Path) -> bool:
    """Whether a checkpoint in the store has Python files, which its model then is."""
    return any(folder.glob(CODE))


def check_format(checkpoint: StartCheckpoint, form: str, key: str) -> None:
    """Raise `UserError`, which begins with `key`, if the tokenizer cannot write an answer in this format."""
    example = EXAMPLES[form]
    tokenizer = read_tokenizer(checkpoint.folder)
    written = tokenizer.decode(tokenizer.encode(example, add_special_tokens=False).ids)
    if FORMATS[form].extract(written) != FORMATS[form].extract(example):
        raise UserError(
            f"{key}: its answers are written as {example!r}, which the tokenizer of start.checkpoint turns into "
            f"{written!r}; ask in another format, or start from a model with another vocabulary"
        )


def _hash_of(folder: Path, names: list[str]) -> str:
    return sha256_of({name: _sha256(str(folder / name), _stamp(folder / name)) for name in names})


def _stamp(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


@lru_cache(maxsize=4096)
def _sha256(path: str, stamp: tuple[int, ...]) -> str:
    """The hash of a file; one that has not changed is not read again."""
    return sha256(path)


def read_tokenizer(folder: Path) -> Any:
    """Returns the `tokenizers.Tokenizer` of a checkpoint; raises `UserError` if its file cannot be read."""
    path = folder / TOKENIZER
    return _tokenizer(str(path), _stamp(path))


@lru_cache(maxsize=8)
def _tokenizer(path: str, stamp: tuple[int, ...]) -> Any:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(path)
    except Exception as error:  # tokenizers raises a bare Exception
        raise UserError(f"{path}: it is no tokenizer ({error}); save the tokenizer again") from error
    # A file may say that texts are cut or padded to one length.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def shape_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the architecture that transformers' configuration describes, in the words of `model`.

    Sizes and operations that are computed from it are those of a Qwen3, or with experts of a MiniMax-M2: exact for
    these, and close for most others.
    """
    width = int(_first(config, "d_model"))
    # Recurrent models may have no attention, whose sizes are taken in its place.
    heads = int(_first(config, "heads") or max(1, width // 64))
    experts = int(_first(config, "experts") or 0)
    ffn = (config.get("moe_intermediate_size") if experts else None) or config.get("intermediate_size")
    shape = {
        "layers": int(_first(config, "layers")),
        "d_model": width,
        "ffn": int(ffn or config.get("n_inner") or 4 * width),
        "heads": heads,
        "kv_heads": int(config.get("num_key_value_heads") or heads),
        "head_dim": int(config.get("head_dim") or width // heads),
        "tied_embeddings": bool(config.get("tie_word_embeddings", True)),
    }
    active = int(_first(config, "active_experts") or 1)
    return shape | ({"experts": experts, "active_experts": active} if experts else {})


def _first(config: Mapping[str, Any], name: str) -> Any:
    return next((config[key] for key in NAMES[name] if config.get(key) is not None), None)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: it cannot be read as JSON ({error}); save the checkpoint again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: it is no JSON object; save the checkpoint again")
    return content
