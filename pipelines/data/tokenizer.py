"""The tokenizer that is trained on the data, and how every path turns a text into the model's input."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from pipelines.configuration.start_checkpoint import CODE, TOKENIZER_FILES, has_code, tokenizer_content

if TYPE_CHECKING:  # transformers imports torch, which commands do without
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
"""Begins every document and ends every response."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Returns a byte-level BPE in which every digit is one token."""
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


def document_encoder(path: Path) -> Tokenizer:
    """Returns the tokenizer of a `tokenizer.json`, set to encode whole documents as text.

    Truncation and padding that the file asks for are switched off, and a special token's string in a document, such as
    a literal `<|endoftext|>`, is encoded as text.
    """
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def document_start(tokenizer: "PreTrainedTokenizerFast") -> int:
    """Returns the token that begins every document: the tokenizer's beginning of text, or its end where it has none."""
    start = tokenizer.bos_token_id
    return int(tokenizer.eos_token_id if start is None else start)


def encode(tokenizer: "PreTrainedTokenizerFast", text: str) -> list[int]:
    """Returns the token ids of `text` with the special tokens that the tokenizer adds, and at least one.

    Our tokenizers add the end-of-text token, with which every training document begins; those of other models what
    these were trained with, which may be nothing. Training rows, RL, our benchmarks and those of lm-eval all use it.
    """
    return tokenizer.encode(text) or [document_start(tokenizer)]


def end_tokens(model: "PreTrainedModel") -> list[int]:
    """The tokens that end a response, as transformers' `generate` has them; the first one is also used for padding."""
    generation: Any = model.generation_config
    ends = None if generation is None else generation.eos_token_id
    ends = model.config.eos_token_id if ends is None else ends
    return [] if ends is None else [int(end) for end in (ends if isinstance(ends, list | tuple) else [ends])]


@dataclass(frozen=True)
class StartTokenizer:
    """The tokenizer of a start checkpoint, and how it asks questions."""

    folder: Path
    """A checkpoint of the chain: all have the same files of the tokenizer."""
    chat: bool = False
    """Whether questions are asked in its chat template."""

    @property
    def content(self) -> str:
        """The hash of its files."""
        return tokenizer_content(self.folder)

    def load(self) -> "PreTrainedTokenizerFast":
        """Returns the tokenizer, as transformers loads it."""
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        code = has_code(self.folder)
        tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True, trust_remote_code=code)
        assert isinstance(tokenizer, PreTrainedTokenizerFast)
        return tokenizer

    def save_pretrained(self, folder: Path) -> None:
        """Copy the files to `folder`, unchanged, so that every checkpoint of the chain has the same tokenizer.

        The code of a model that is its own goes along.
        """
        for name in (*TOKENIZER_FILES, *(path.name for path in self.folder.glob(CODE))):
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, folder / name)


def fitting(prompt: list[int], *, length: int, limit: int) -> list[int]:
    """Returns `prompt` cut so that an answer of `limit` tokens fits after it into the `length` tokens of the model.

    A prompt of up to half the length is never cut, since few answers are as long as their limit. What is cut is the
    text after the document's start: the start and the last tokens stay.
    """
    longest = length - min(limit, length // 2)
    return prompt if len(prompt) <= longest else [prompt[0], *prompt[len(prompt) - longest + 1 :]]


def fitting_pair(context: list[int], continuation: list[int], *, length: int) -> tuple[list[int], list[int]]:
    """Returns a context and the continuation that is scored after it, cut to what a model of `length` tokens sees.

    The last token of the continuation is only predicted. What is cut is the context after its first token; only a
    continuation that is longer than the model loses its end.
    """
    continuation = continuation[:length]
    longest = length + 1 - len(continuation)
    if len(context) > longest:
        context = [context[0], *context[len(context) - longest + 1 :]]
    return context, continuation


def with_document_start(tokenizer: "PreTrainedTokenizerFast") -> "PreTrainedTokenizerFast":
    """Returns `tokenizer`, changed so that it puts the end-of-text token before a text by default, as `encode` does.

    Checkpoints are saved with it, so other programs that load them encode a prompt as in training.
    """
    end, backend = tokenizer.eos_token, tokenizer.backend_tokenizer
    start = processors.TemplateProcessing(
        single=f"{end} $A", pair=f"{end} $A $B", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    present = backend.post_processor
    backend.post_processor = start if present is None else processors.Sequence([present, start])
    tokenizer.bos_token = end
    return tokenizer
