"""The tokenizer that is trained on the data, and how every path turns a text into the model's input."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

if TYPE_CHECKING:  # transformers imports torch, which commands do without
    from transformers import PreTrainedTokenizerFast

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


def encode(tokenizer: "PreTrainedTokenizerFast", text: str) -> list[int]:
    """Returns the token ids of `text` after the end-of-text token, with which every training document begins.

    Training rows, RL, our benchmarks and those of lm-eval all use it.
    """
    return [tokenizer.eos_token_id, *tokenizer.encode(text, add_special_tokens=False)]


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
