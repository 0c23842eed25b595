"""A corpus as people have it: compressed files, folders, templates, records without text, damaged and mixed files."""

import gzip
import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.comparison import peak_memory
from pipelines.configuration.data import DataConfig, SourceConfig
from pipelines.data import sources
from pipelines.data.part_schedule import PartSchedule, tokens_of
from pipelines.data.part_worker import batches
from pipelines.data.preparation import prepare_shards
from pipelines.data.sources import Part, documents_of, parts_of
from pipelines.data.token_shards import TokenShards
from pipelines.errors import StageFailure, UserError
from tests.forked import forked

TEXTS = [f"Document {i} says that {i} and {i + 1} make {2 * i + 1}." for i in range(700)]


def compressed(path: Path, data: bytes, *, frames: int = 1) -> None:
    """Write a file, compressed by its suffix, in several frames as parallel compressors do."""
    size = -(-len(data) // frames)
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zst":
        pieces = [pa.Codec("zstd").compress(piece, asbytes=True) for piece in pieces]
    elif path.suffix == ".gz":
        pieces = [gzip.compress(piece) for piece in pieces]
    path.write_bytes(b"".join(pieces))


def json_lines(records: Sequence[Any]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def read(source: SourceConfig) -> list[str | None]:
    return [text for part in parts_of("web", source) for text in documents_of(part)]


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.json.gz", "a.jsonl"])
def test_the_parts_of_a_file_hold_each_line_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compressed(tmp_path / name, json_lines([{"text": text} for text in TEXTS]), frames=3)
    source = SourceConfig("jsonl", str(tmp_path / name))
    assert read(source) == TEXTS
    monkeypatch.setattr(sources, "STRETCH", 5000)
    monkeypatch.setattr(sources, "COMPRESSED_STRETCH", 700)
    monkeypatch.setattr(sources, "BLOCK", 16)
    parts = parts_of("web", source)
    assert len(parts) > 3
    each = [list(documents_of(part)) for part in parts]
    assert all(each)
    assert sorted(text for texts in each for text in texts if text) == sorted(TEXTS)


def test_a_folder_is_read_with_all_below_it_but_what_is_no_data(tmp_path: Path) -> None:
    """Dolma's layout: folders of .json.gz whose records have an identifier and a source next to the text."""
    records = [{"id": f"d{i}", "source": "web", "text": text} for i, text in enumerate(TEXTS)]
    compressed(tmp_path / "documents" / "cc" / "0000.json.gz", json_lines(records[:300]))
    compressed(tmp_path / "documents" / "cc" / "0001.json.gz", json_lines(records[300:400]))
    compressed(tmp_path / "documents" / "wiki" / "en" / "0000.jsonl.zst", json_lines(records[400:]))
    for other in ("documents/LICENSE", "documents/.cache/x.json", "documents/cc/_SUCCESS", "documents/_meta/a.json"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_text("not data")
    assert read(SourceConfig("jsonl", str(tmp_path / "documents"))) == TEXTS


def test_a_folder_of_parquet_files(tmp_path: Path) -> None:
    for i in range(3):
        table = pa.table({"id": list(range(200)), "body": TEXTS[200 * i : 200 * (i + 1)]})
        (tmp_path / f"part={i}").mkdir()
        parquet.write_table(table, tmp_path / f"part={i}" / "0.parquet", row_group_size=15)
    parts = parts_of("web", SourceConfig("parquet", str(tmp_path), column="body"))
    assert len(parts) == 6  # 14 row groups a file, 8 a part
    assert [text for part in parts for text in documents_of(part)] == TEXTS[:600]


def test_a_template_joins_fields(tmp_path: Path) -> None:
    records = [{"question": "1+1?", "answer": 2, "n": {"x": 1}}, {"question": "{answer}", "answer": "x"}]
    without = [{"question": "why?"}, {"question": "why?", "answer": None}, {"question": "q", "answer": ["x"]}]
    (tmp_path / "a.jsonl").write_bytes(json_lines([*records, *without]))
    template = "Question: {question}\nAnswer: {answer} {{}}"
    expected = ["Question: 1+1?\nAnswer: 2 {}", "Question: {answer}\nAnswer: x {}", None, None, None]
    assert read(SourceConfig("jsonl", str(tmp_path / "a.jsonl"), template=template)) == expected
    table = pa.table({"question": ["1+1?", "why?"], "other": [1, 2], "answer": [2, None]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert read(SourceConfig("parquet", str(tmp_path / "a.parquet"), template=template)) == [expected[0], None]


def test_half_a_surrogate_pair_becomes_the_replacement_character(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "half \\ud83d of \\ud83d\\ude00, \\udc00"}\n')
    assert read(SourceConfig("jsonl", str(tmp_path / "a.jsonl"))) == ["half \ufffd of \U0001f600, \ufffd"]


def test_records_without_text_are_passed_over_or_refused(tmp_path: Path) -> None:
    records = [{"text": "one"}, {"text": None}, {"text": " \n"}, {"id": 3}, {"text": 4}, ["five"], {"text": "six"}]
    (tmp_path / "a.jsonl").write_bytes(json_lines(records) + b"\n\n")
    source = SourceConfig("jsonl", str(tmp_path / "a.jsonl"))
    assert read(source) == ["one", None, None, None, None, None, "six"]
    source.strict = True
    with pytest.raises(StageFailure, match=r"a\.jsonl: the line at byte 16 has no text in 'text'.*strict=false"):
        read(source)


def test_damaged_files_are_named_with_their_position(tmp_path: Path) -> None:
    data = json_lines([{"text": os.urandom(500).hex()} for _ in range(2000)])
    for name in ("a.jsonl.zst", "a.jsonl.gz"):
        compressed(tmp_path / name, data, frames=4)
        whole = (tmp_path / name).read_bytes()
        cut = len(whole) * 2 // 3
        # Cut off, overwritten in the middle (zstd without checksums cannot see that), and followed by something else.
        overwritten = whole[:cut] + b"\0" * 64 + whole[cut + 64 :]
        for content, at in ((whole[:cut], cut), (overwritten, cut), (whole + b"no frame" * 9, len(whole))):
            if content is overwritten and name.endswith(".zst"):
                continue
            (tmp_path / name).write_bytes(content)
            with pytest.raises(StageFailure, match=r"damaged at or before byte [\d,]+ of") as error:
                read(SourceConfig("jsonl", str(tmp_path / name)))
            assert str(tmp_path / name) in str(error.value)
            assert "(None)" not in str(error.value)
            if content == whole[:cut] and name.endswith(".gz"):
                assert "(Compressed file ended before the end-of-stream marker was reached)" in str(error.value)
            found = re.search(r"byte ([\d,]+) of", str(error.value))
            assert found
            assert at <= int(found[1].replace(",", "")) <= at + 1_200_000
    (tmp_path / "no.jsonl").write_text('{"text": "x"}\nno\n')
    with pytest.raises(StageFailure, match=r"no\.jsonl: the line at byte 14 is not JSON"):
        read(SourceConfig("jsonl", str(tmp_path / "no.jsonl")))
    (tmp_path / "no.parquet").write_text("text")
    with pytest.raises(UserError, match=r"no\.parquet: it is no Parquet file \(.*[Pp]arquet.*\); write"):
        parts_of("web", SourceConfig("parquet", str(tmp_path / "no.parquet")))


def test_a_damaged_row_group_is_named_with_what_the_library_says(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": TEXTS}), path, row_group_size=400, compression="gzip", use_dictionary=False)
    page = parquet.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[page + 100 : page + 400] = bytes(300)
    path.write_bytes(content)
    with pytest.raises(StageFailure, match=r"a\.parquet: row group 1 cannot be read \(.*GZip.*\); copy it again"):
        read(SourceConfig("parquet", str(path)))


def test_mistakes_are_found_before_anything_is_prepared(tmp_path: Path) -> None:
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "README.md").write_text("x")
    compressed(tmp_path / "mixed" / "a.jsonl.zst", json_lines([{"body": "x", "id": 1}]))
    parquet.write_table(pa.table({"text": ["x"]}), tmp_path / "mixed" / "b.parquet")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "a.jsonl").write_bytes(json_lines([{"text": "x"}]))
    (tmp_path / "two" / "b.jsonl").write_bytes(json_lines([{"content": "x"}]))
    one, template = str(tmp_path / "mixed" / "a.jsonl.zst"), "{question} {body}"
    for source, message in (
        (SourceConfig("jsonl", str(tmp_path / "empty")), r"path=.*empty: the folder has no files, but none of"),
        (SourceConfig("jsonl", str(tmp_path / "other")), r"has 1 files, such as README\.md, but none of .*\.jsonl"),
        (SourceConfig("jsonl", str(tmp_path / "no*")), "no file matches"),
        (SourceConfig("jsonl", str(tmp_path / "mixed")), r"b\.parquet is of the kind parquet, but .*kind=jsonl"),
        (SourceConfig("parquet", one), r"a\.jsonl\.zst is of the kind jsonl"),
        (SourceConfig("jsonl", one), r"column=text: .*zst has no column 'text'; it is one of: body, id"),
        (SourceConfig("jsonl", one, template=template), r"template=.*no column 'question'; .*body, id"),
        (SourceConfig("jsonl", str(tmp_path / "two")), r"b\.jsonl has no column 'text'.*content"),
    ):
        with pytest.raises(UserError, match=message):
            parts_of("web", source)


@pytest.mark.parametrize("template", ["{}", "{0}", "{a[0]}", "{a.b}", "{a!r}", "{a:>3}", "{a", "no field"])
def test_a_template_that_names_no_field_is_refused(template: str) -> None:
    with pytest.raises(UserError, match=r"data\.sources\.x\.template="):
        DataConfig("t", sources={"x": SourceConfig("jsonl", "a.jsonl", template=template)})


def test_documents_are_encoded_whole_and_as_text(tmp_path: Path) -> None:
    """With a tokenizer that truncates, pads and adds tokens by itself, and documents that contain its special token."""
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", pad_token="<|pad|>")
    tokenizer.backend_tokenizer.enable_truncation(7)
    tokenizer.backend_tokenizer.enable_padding(length=11, pad_id=tokenizer.pad_token_id, pad_token="<|pad|>")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    raw = json.loads((tmp_path / "tokenizer" / "tokenizer.json").read_text())
    raw["truncation"] = {"direction": "Right", "max_length": 7, "strategy": "LongestFirst", "stride": 0}
    raw["padding"] = raw["padding"] or {
        "strategy": {"Fixed": 11}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 257, "pad_type_id": 0,
        "pad_token": "<|pad|>",
    }  # fmt: skip
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(json.dumps(raw))
    texts = ["a<|end|>b", "x", "<|pad|>", "a long document " * 20]
    (tmp_path / "a.jsonl").write_bytes(json_lines([{"text": text} for text in [*texts, ""]]))
    data = DataConfig("t", tasks=["chain3"], tokenizer=str(tmp_path / "tokenizer"), shards=str(tmp_path / "shards"))
    data.sources = {"web": SourceConfig("jsonl", str(tmp_path / "a.jsonl"))}
    prepare_shards(data, processes=1, validation=0.0, evaluation_files=[])
    shards = TokenShards(tmp_path / "shards")
    tokens = [list(document) for document in shards.document_tokens("web", "train")]
    assert [len(document) for document in tokens] == [len(text) for text in texts]  # one token a byte
    assert [backend.decode(document) for document in tokens] == texts
    assert not {tokenizer.eos_token_id, tokenizer.pad_token_id} & {token for document in tokens for token in document}
    assert (shards.index["documents"], shards.index["without_text"]) == (4, 1)


def _read_in_batches(path: Path) -> tuple[int, float]:
    """The number of documents of a file, and the MiB of memory that reading them adds to this process."""
    counts: list[int] = []
    mebibytes = peak_memory(lambda: counts.append(_consume(path)))
    return counts[0], mebibytes


def _consume(path: Path) -> int:
    count = 0
    for part in parts_of("web", SourceConfig("parquet" if path.suffix == ".parquet" else "jsonl", str(path))):
        for batch in batches(text for text in documents_of(part) if text):
            count += len(batch)
    return count


@pytest.mark.ci_only
@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.jsonl.gz", "a.jsonl", "a.parquet"])
def test_memory_does_not_grow_with_the_file(name: str, tmp_path: Path) -> None:
    """Reading 160 MB of text in batches adds less than a quarter of it; of Parquet, whose row groups of 10 MB are
    buffered by its library, 320 MB less than a third.
    """
    document = "A document of some length. " * 400
    texts = [f"{i} {document}" for i in range(30_000 if name.endswith("parquet") else 15_000)]
    if name.endswith("parquet"):
        parquet.write_table(pa.table({"text": texts}), tmp_path / name, row_group_size=1000, use_dictionary=False)
    else:
        compressed(tmp_path / name, json_lines([{"text": text} for text in texts]), frames=2)
    with ProcessPoolExecutor(1, forked) as pool:
        count, mebibytes = pool.submit(_read_in_batches, tmp_path / name).result()
    assert count == len(texts)
    assert mebibytes < (100 if name.endswith("parquet") else 40), f"{mebibytes} MiB"


def test_long_documents_make_small_batches() -> None:
    texts = ["x" * (3 << 20), "y" * (3 << 20), "z" * (9 << 20), *["s"] * 600]
    assert [len(batch) for batch in batches(iter(texts))] == [1, 1, 1, 512, 88]


def _record(tokens: int) -> dict[str, Any]:
    return {"documents": 1, "characters": 4 * tokens, "shards": {"train": {"tokens": tokens}}}


def test_a_budget_takes_the_same_parts_in_any_order_of_completion() -> None:
    """Forty parts of 10 tokens: a budget of 95 takes ten of them, from all over the source, and one source has none."""
    parts = [Part(source, f"{i:05d}", "hub", "", "text", start=i) for source in ("some", "all") for i in range(40)]
    chosen = []
    for at_once in (1, 7):
        schedule = PartSchedule(parts, {"some": 95, "all": None}, {})
        running: list[Part] = []
        while True:
            while len(running) < at_once and (part := schedule.next()):
                running.append(part)
            if not running:
                break
            schedule.done(last := running.pop(), _record(10))
            assert last not in running
        used = schedule.used()
        assert sum(map(tokens_of, [record for part, record in used.items() if part.source == "some"])) == 100
        assert [part for part in used if part.source == "all"] == parts[40:]
        chosen.append([part.start for part in used if part.source == "some"])
        state = schedule.progress()
        assert (state.expected, state.documents) == (state.characters, state.parts)
    assert chosen[0] == chosen[1] == sorted(chosen[0])
    assert max(chosen[0]) - min(chosen[0]) > 20  # not only from the beginning


def test_progress_estimates_what_is_left() -> None:
    parts = [Part(source, f"{i:05d}", "hub", "", "text", start=i) for source in "ab" for i in range(4)]
    schedule = PartSchedule(parts, {"a": None, "b": None}, {parts[0]: _record(100)})
    before = schedule.progress()
    assert (before.parts, before.all_parts, before.characters, before.expected, before.fresh) == (1, 8, 400, None, 0)
    part = schedule.next()
    assert part == parts[4]  # the source that is behind
    schedule.done(part, _record(50))
    after = schedule.progress()
    assert (after.characters, after.expected, after.fresh) == (600, 4 * 400 + 4 * 200, 200)
