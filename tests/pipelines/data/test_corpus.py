"""The corpus: rows, mixture, splits, and a cache that notices changes."""

import ast
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.configuration.data import DataConfig, text_versions
from pipelines.data.corpus import Corpus, _training_text, overlap, prepare, row_starts
from pipelines.data.docstrings import Document, docstrings
from pipelines.data.tokenizer import train_tokenizer
from pipelines.data.training_order import schedule
from pipelines.tasks.families import Problem, split_of
from tests.forked import forked

MIXTURE = {"a": 3, "b": 1, "c": 0}
SIZES = {"a": 50, "b": 7}


def config(**changes: object) -> DataConfig:
    values = {
        "name": "test",
        "text": ["networkx"],
        "tasks": ["chain3", "order"],
        "tasks_per_family": 200,
        "worked_share": 0.5,
        "careless_share": 0.5,
        "vocab_size": 300,
        "top_k": 8,
    }
    return DataConfig(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return prepare(config(), tmp_path_factory.mktemp("cache"))


def test_rows_hold_the_documents_in_order(corpus: Corpus) -> None:
    end = corpus.tokenizer.eos_token_id
    for source in ("text", "chain3"):
        rows = corpus.rows(source, "train", 48)
        assert rows.shape[1] == 49
        if source == "chain3":
            assert (rows[:, 0] == end).all()  # a row begins where a task begins
    text = corpus.tokenizer.decode(corpus.rows("chain3", "train", 32)[0])
    first = corpus.problems("chain3", "train")[0]
    assert text.startswith("<|endoftext|>" + first.prompt)


def test_rows_of_other_texts_are_made_like_those_of_the_corpus(corpus: Corpus) -> None:
    texts = [document.training_text for document in corpus.documents("validation")]
    assert np.array_equal(corpus.rows_of_texts(texts, 24), corpus.rows("text", "validation", 24))


def test_a_document_begins_with_the_token_that_begins_it(corpus: Corpus) -> None:
    """The number of the document goes up by one there, and nowhere else; the last row may end with an end of text."""
    rows, documents = corpus.rows_with_documents("chain3", "train", 48)
    begins = rows == corpus.tokenizer.eos_token_id
    assert documents[0, 0] == 0
    assert np.array_equal(np.diff(documents, axis=1)[:-1], begins[:-1, 1:])


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=30),
    length=st.integers(2, 10),
)
def test_rows_lose_nothing_and_begin_at_documents(lengths: list[int], length: int) -> None:
    documents = np.cumsum([0, *lengths[:-1]])
    size = sum(lengths) + 1
    starts = row_starts(documents, size, length)
    covered = set()
    for previous, start in zip([None, *starts], starts, strict=False):
        assert start in documents or (previous is not None and start == previous + length)
        covered |= set(range(start, start + length))
    assert covered >= set(range(int(starts[-1]) + length if len(starts) else 0))
    # At the end, less than a row beyond the document that the last row cut is left over.
    assert size - (int(starts[-1]) + length if len(starts) else 0) <= length + max(lengths)


def test_mixture_follows_weights_and_passes() -> None:
    order = schedule([1], 6000, mixture=MIXTURE, sizes=SIZES)
    share = sum(source == "a" for source, _ in order) / 6000
    assert abs(share - 0.75) < 4 * (0.75 * 0.25 / 6000) ** 0.5
    rows_of_a = [row for source, row in order if source == "a"]
    assert sorted(rows_of_a[:50]) == list(range(50))
    assert sorted(rows_of_a[50:100]) == list(range(50))
    assert rows_of_a[:50] != rows_of_a[50:100]
    assert order == schedule([1], 6000, mixture=MIXTURE, sizes=SIZES)
    assert order != schedule([2], 6000, mixture=MIXTURE, sizes=SIZES)


def test_digits_are_tokens_and_text_survives(corpus: Corpus) -> None:
    text = "Q: 12+345\nA: éß #### 9"
    ids = corpus.encode(text)
    assert ids[0] == corpus.tokenizer.eos_token_id
    assert corpus.tokenizer.decode(ids[1:]) == text
    pieces = [corpus.tokenizer.decode([i]) for i in ids]
    assert all(len(p.strip()) == 1 for p in pieces if any(c.isdigit() for c in p))


def test_prompt_and_response_meet_at_a_token_boundary(corpus: Corpus) -> None:
    """Training text has the same tokens as a prompt followed by sampled tokens."""
    for problem in corpus.problems("chain3", "train")[:20]:
        for response in (problem.worked, problem.outright):
            apart = corpus.encode(problem.prompt) + corpus.encode(response)[1:]
            assert corpus.encode(problem.prompt + response) == apart


def test_the_splits_share_nothing(corpus: Corpus) -> None:
    assert corpus.manifest["overlap"] == 0
    questions = {split: {p.question for p in corpus.problems("order", split)} for split in ("train", "rl", "test")}
    assert all(questions.values())
    assert not questions["train"] & questions["test"]
    assert not questions["rl"] & (questions["test"] | questions["train"])


def test_an_overlap_would_be_counted() -> None:
    question = "1+1"
    same = Problem("chain3", question, (), "2", "3")
    other = next(t for t in map(str, range(99)) if split_of(t) == "test")
    assert overlap([same, same], []) == 0

    class Misplaced(Document):
        split = "validation"

    assert overlap([], [Document("m", other), Misplaced("m", other)]) == 1


def test_every_kind_of_answer_has_its_share(tmp_path: Path) -> None:
    changes = {"worked_share": 0.25, "careless_share": 0.4, "tasks_per_family": 2000}
    corpus = prepare(config(text=[], tasks=["chain4"], **changes), tmp_path)
    text = corpus.tokenizer.decode(corpus.rows("chain4", "train", 64).ravel())
    parts = [part.split("\nA:") for part in text.split("Q: ") if "####" in part]
    answers = {question: answer.split("<")[0] for question, answer in parts}  # a cut question is in two rows
    problems = [p for p in corpus.problems("chain4", "train") if p.question in answers]
    counts = {
        style: sum(answers[p.question] == getattr(p, style) for p in problems)
        for style in ("worked", "outright", "careless")
    }
    assert sum(counts.values()) == len(problems) > 1000
    for style, share in {"worked": 0.25, "outright": 0.75 * 0.6, "careless": 0.75 * 0.4}.items():
        assert abs(counts[style] / len(problems) - share) < 4 * (share * (1 - share) / len(problems)) ** 0.5


def test_the_kind_of_an_answer_depends_on_the_seed_of_the_data() -> None:
    problem = Problem("chain3", "1+1+1", ("2+1", "3"), "3", "2")
    kinds = [_training_text(problem, config(text=[], seed=seed)) for seed in range(30)]
    assert set(kinds) == {problem.prompt + kind for kind in (problem.worked, problem.outright, problem.careless)}
    assert kinds == [_training_text(problem, config(text=[], seed=seed)) for seed in range(30)]


def test_the_order_of_documents_depends_on_the_seed_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [Document("m", f"{number} " * 100) for number in range(30)]
    monkeypatch.setattr("pipelines.data.corpus.docstrings", lambda package: documents)
    orders = [
        prepare(config(tasks=[], seed=seed), tmp_path / folder).documents("train")
        for folder, seed in (("a", 0), ("b", 1), ("c", 1))
    ]
    assert orders[0] != orders[1] == orders[2]
    assert set(orders[0]) == set(orders[1])


def test_the_tokenizer_is_trained_on_training_text_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(
        "pipelines.data.corpus.train_tokenizer", lambda texts, size: seen.extend(texts) or train_tokenizer(texts, size)
    )
    corpus = prepare(config(text=[], tasks_per_family=100), tmp_path)
    questions = {text.removeprefix("Q: ").split("\n")[0] for text in seen}
    assert questions == {p.question for family in ("chain3", "order") for p in corpus.problems(family, "train")}


def test_docstrings_are_those_of_ast() -> None:
    """Everything that Python's walk over all nodes finds, in the same order and without duplicates."""
    import networkx

    root, expected = Path(networkx.__file__).parent, {}
    for path in sorted(path for path in root.rglob("*.py") if "tests" not in path.parts):
        module = ".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                if len(text) >= 200:
                    expected.setdefault(text, Document(module, text))
    assert len(expected) > 500
    assert docstrings("networkx") == list(expected.values())


def test_docstrings_do_not_depend_on_where_a_package_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither on the folders above it nor on its neighbours; only folders `tests` inside of it are left out."""
    modules = {"__init__": "a", "graph/__init__": "b", "graph/tests/test_graph": "c", "tests/__init__": "d"}
    documents = []
    for above in ("plain", "tests", "tests/site-packages"):
        folder = tmp_path / above / "lib"
        for name, letter in modules.items():
            path = folder / "graphlike" / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f'"""{letter * 300}"""\n')
        (folder / "single.py").write_text(f'"""{"s" * 300}"""\n')
        with monkeypatch.context() as patch:
            patch.syspath_prepend(str(folder))
            documents.append((docstrings("graphlike"), docstrings("single")))
    assert (
        documents
        == [
            (
                [Document("graphlike", "a" * 300), Document("graphlike.graph", "b" * 300)],
                [Document("single", "s" * 300)],
            )
        ]
        * 3
    )


def test_a_package_that_is_edited_in_place_is_known_by_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its version stays; that of an installed package is enough."""
    (tmp_path / "edited").mkdir()
    (tmp_path / "edited" / "__init__.py").write_text("")
    information = tmp_path / "edited-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: edited\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    data = config(text=["edited"], tasks=[])
    assert text_versions(data) == {"edited": "1.0"}
    (information / "direct_url.json").write_text('{"url": "file:///x", "dir_info": {"editable": true}}')
    versions = [text_versions(data)["edited"]]
    for content in ('"""a"""', '"""b"""', ""):
        (tmp_path / "edited" / "__init__.py").write_text(content)
        versions.append(text_versions(data)["edited"])
    assert all(version.startswith("1.0+") for version in versions)
    assert len(set(versions)) == 3
    assert versions[0] == versions[-1]


def _prepare(folder: Path) -> str:
    return str(prepare(config(text=[], tasks_per_family=50), folder).folder)


def test_concurrent_processes_build_it_once(tmp_path: Path) -> None:
    # Not `Pool`, which ends its workers with SIGTERM: processes of the fork server ignore that.
    with ProcessPoolExecutor(2, mp_context=forked) as pool:
        first, second = pool.map(_prepare, [tmp_path, tmp_path])
    assert first == second
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == [Path(first).name]


def changed_tokens(folder: Path) -> None:
    with (folder / "tokens.npz").open("ab") as file:
        file.write(b"x")


def changed_manifest(folder: Path) -> None:
    """Another size of the head, which the ledger's statistics depend on."""
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"top_k": ', '"top_k": 1'))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (changed_tokens, "tokens.npz: its sha256 is"),
        (changed_manifest, "manifest.json: its sha256 is"),
        (lambda folder: (folder / "tokens.npz").unlink(), "tokens.npz: its sha256 is missing"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json: it is not readable JSON"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json: it is not a JSON object"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "manifest.json: it does not end with its sha256"),
    ],
)
def test_a_changed_cache_is_named_and_built_again(
    tmp_path: Path, damage: Callable[[Path], object], message: str, warnings: list[str]
) -> None:
    folder = prepare(config(text=[], tasks_per_family=50), tmp_path).folder
    manifest = (folder / "manifest.json").read_bytes()
    damage(folder)
    assert prepare(config(text=[], tasks_per_family=50), tmp_path).folder == folder
    assert f"{folder}/{message}" in "\n".join(warnings)
    assert (folder / "manifest.json").read_bytes() == manifest


def test_a_whole_cache_needs_no_right_to_write(tmp_path: Path) -> None:
    """Another user of a group may only read it, and the lock is its builder's."""
    built = prepare(config(text=[], tasks_per_family=50), tmp_path)
    (lock,) = tmp_path.glob("*.lock")
    lock.unlink()
    lock.mkdir()  # cannot be opened, by root neither
    assert prepare(config(text=[], tasks_per_family=50), tmp_path).folder == built.folder


def test_the_name_of_a_folder_never_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data sets that are in caches already must be found."""
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.0")
    folder = prepare(config(text=[], tasks_per_family=5), tmp_path).folder
    assert folder.name == "ef627466bad7c60e"


def test_another_configuration_is_another_folder(tmp_path: Path) -> None:
    folders = {
        prepare(config(text=[], tasks_per_family=50, **c), tmp_path).folder
        for c in ({}, {"vocab_size": 310}, {"seed": 1})
    }
    assert len(folders) == 3
    assert prepare(config(text=[], tasks_per_family=50, name="else"), tmp_path).folder in folders
