"""How a text becomes tokens: with the tokenizer's special tokens, and never as nothing."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipelines.data.tokenizer import document_start, encode


@pytest.mark.parametrize(("special", "start"), [({"eos_token": "b"}, 1), ({"eos_token": "b", "bos_token": "c"}, 2)])
def test_an_empty_text_is_the_token_that_begins_documents(special: dict[str, str], start: int) -> None:
    """Of a tokenizer that adds nothing by itself."""
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    assert document_start(tokenizer) == start
    assert encode(tokenizer, "") == [start]
    assert encode(tokenizer, "a c") == [0, 2]
