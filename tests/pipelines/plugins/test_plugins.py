"""Plugins of a folder of one's own: registered, signed by their code, run as ours are, and refused in one sentence."""

import json
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest
import torch

from pipelines.configuration.grpo import ENGINES
from pipelines.configuration.tracking import OTHER_TRACKERS, TrackingConfig
from pipelines.data.corpus import prepare
from pipelines.data.questions import Question
from pipelines.errors import StageFailure, UserError
from pipelines.evaluation.evaluate import evaluate
from pipelines.models.causal_lm import build_model
from pipelines.plugins import loading
from pipelines.plugins.loading import load_planned, planned_plugins, use_plugins
from pipelines.tasks.families import FAMILIES
from pipelines.tasks.formats import FORMATS
from pipelines.tasks.question_sets import QUESTION_SETS
from pipelines.verifiers import VERIFIERS, Judge
from sweeps.compose.cells import compose_cell
from sweeps.compose.config_files import CONFIG_DIR_VARIABLE
from sweeps.plan.planner import plan
from tests.conftest import SMALL
from tests.pipelines.evaluation.contexts import evaluation_context

REWARDS = r"""
import asyncio, os, time
from helpers import distance
from pipelines.plugins import Problem, answer_format, benchmark, family, verifier

@verifier("close", seconds=5.0)
def close(answer, reference):
    return 1.0 / (1.0 + distance(answer, reference))

@verifier("polite", reads="conversation")
async def polite(messages, reference):
    await asyncio.sleep(0)
    assert [message["role"] for message in messages] == ["user", "assistant"]
    return float(reference in messages[1]["content"] and "please" in messages[1]["content"])

@verifier("odd", seconds=0.5)
def odd(answer, reference):
    if answer == "raise":
        raise KeyError("x")
    if answer == "hang":
        time.sleep(60)
    return {"nan": float("nan"), "five": 5.0, "half": 0.5}[answer]

answer_format("estimate", prompt="{question} About", answer=r"([\d.]+)", verifier="close")
answer_format("asked", prompt="{question}", answer=r"(.*)", verifier="polite")
"""
FAMILY = """
from pipelines.plugins import Problem, benchmark, family

@family("doubles")
def doubles(rng):
    number = rng.randrange(500)
    return Problem("doubles", f"twice {number}", (str(2 * number),), str(2 * number), slip=str(number))

@benchmark("riddles", format="estimate")
def riddles():
    return [(f"{a}+1?", a + 1) for a in range(5)]

@benchmark("capitals", kind="choice")
def capitals():
    return [("France has", [" Rome", " Paris"], 1), ("Three:", [" a", " b", " c"], 0)]

@benchmark("letters", kind="text")
def letters():
    return [f"Dear reader {i}, this is letter {i}." for i in range(20)]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with two plugins and a module that one of them imports."""
    files = {
        "rewards.py": REWARDS,
        "more/__init__.py": "",
        "more/families.py": FAMILY,
        "helpers.py": "def distance(a, b): return abs(float(a) - float(b))\n",
        "plugins.yaml": "plugins: [rewards, more.families]\n",
        "questions.jsonl": "".join(
            json.dumps({"question": f"{i}+1?", "answer": i + 1, "format": "estimate"}) + "\n" for i in range(100)
        ),
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setenv(CONFIG_DIR_VARIABLE, str(tmp_path))
    yield tmp_path
    use_plugins(None)


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as refused:
        use_plugins(str(folder))
    message = str(refused.value)
    assert "\n" not in message
    return message


def test_what_plugins_register_is_used_by_name_and_gone_with_their_folder(folder: Path) -> None:
    cell = compose_cell(
        [
            "data.tasks=[chain3,doubles]",
            "grpo.tasks=['${here:questions.jsonl}',doubles]",
            "pretrain.mixture={doubles:1}",
            "midtrain.mixture={doubles:1}",
            "data.text=[]",
            "evaluation.controls={}",
            "evaluation.benchmarks={R:{kind:sampled,group:math,task:riddles,items:4,samples:4}}",
        ]
    )
    assert cell.grpo.tasks == [str(folder / "questions.jsonl"), "doubles"]
    assert [line.answer for line in QUESTION_SETS["riddles"].read("riddles")] == ["1", "2", "3", "4", "5"]
    use_plugins(None)
    assert not {"close", "polite", "odd"} & set(VERIFIERS)
    assert not {"estimate", "asked"} & set(FORMATS)
    assert "doubles" not in FAMILIES
    assert not QUESTION_SETS
    assert str(folder) not in sys.path


def test_verifiers_run_in_workers_and_failures_are_counted_and_explained(folder: Path, warnings: list[str]) -> None:
    use_plugins(str(folder))
    asked = Question("t", "2+2?", "4", "asked")
    items = [("close", "3", "4"), asked.judged("4, please"), asked.judged("5, please")]
    items += [("odd", answer, "") for answer in ("half", "raise", "hang", "nan", "five")]
    with Judge(1) as judge:
        verdicts = judge.rewards(items)
    assert [tuple(verdict) for verdict in verdicts] == [
        (0.5, None), (1.0, None), (0.0, None), (0.5, None),
        (0.0, "error"), (0.0, "timeout"), (0.0, "error"), (0.0, "error"),
    ]  # fmt: skip
    assert warnings == ["the verifier odd failed on an answer: KeyError: 'x'; failures are counted"]
    assert asked.judged("4", complete=False)[1] is None


def test_the_code_of_a_plugin_is_in_the_signatures_of_what_it_changes(folder: Path) -> None:
    overrides = [
        "data.tasks=[chain3,chain4,chain5,python,boolean,order,doubles]",
        "grpo.tasks=['${here:questions.jsonl}']",
    ]

    def signatures() -> dict[str, str]:
        return {run.stage: run.signature for run in plan([compose_cell(overrides)]).runs.values()}

    before = signatures()
    # Code that the verifier imports: RL is trained again, and what comes before it is not.
    (folder / "helpers.py").write_text("def distance(a, b): return 2 * abs(float(a) - float(b))\n")
    changed = signatures()
    assert {stage for stage in before if before[stage] != changed[stage]} == {"grpo", "evaluate"}
    grpo = next(run for run in plan([compose_cell(overrides)]).runs.values() if run.stage == "grpo")
    assert grpo.config["grpo"]["plugins"]["estimate"]["verifier"]["source"] == VERIFIERS["close"].source
    (folder / "more" / "families.py").write_text(FAMILY.replace("2 * number", "3 * number"))
    assert signatures()["pretrain"] != before["pretrain"]


def test_a_worker_loads_what_was_planned_and_nothing_else(folder: Path) -> None:
    use_plugins(str(folder))
    planned = planned_plugins()
    use_plugins(None)
    load_planned({})
    assert "close" not in VERIFIERS
    load_planned(planned)
    assert VERIFIERS["close"].source == planned["modules"]["rewards"]
    use_plugins(None)
    (folder / "helpers.py").write_text("def distance(a, b): return 0.0\n")
    with pytest.raises(StageFailure, match=r"plugins=\[rewards\]: .*rewards.py has changed since"):
        load_planned(planned)


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ("raise KeyError('x')", r"rewards.py:\d+: KeyError: 'x'; mend it, or leave it out of plugins.yaml"),
        ("x = (", r"rewards.py:\d+: SyntaxError: '\(' was never closed"),
        ("verifier('math')(close)", "the verifier 'math' is registered by Shaping itself already"),
        ("verifier('close')(close)", r"the verifier 'close' is registered by plugins=\[rewards\] in .* already"),
        ("verifier('v')(len)", r"verifier 'v': it is called with an answer and a reference"),
        ("verifier('v', seconds=0)(close)", r"verifier 'v': seconds=0: it must be above 0"),
        ("verifier('v', reads='text')(close)", r"reads=text: it is one of: answer, conversation"),
        ("answer_format('f', prompt='{question}', answer='(.)', verifier='closs')", "verifier=closs: did you mean"),
        ("answer_format('f', prompt='?', answer='(.)', verifier='close')", r"it has no \{question\}; add it"),
        ("answer_format('f', prompt='{question} {', answer='(.)', verifier='close')", r"write other braces twice"),
        ("answer_format('f', prompt='{question}', answer='(.', verifier='close')", "correct the expression"),
        ("family('f')(lambda rng: 3)", "task family 'f': it returned 3; return a Problem whose family is 'f'"),
        ("family('f')(lambda rng: 1 / 0)", "task family 'f': it raised ZeroDivisionError"),
        ("family('f', format='g')(lambda rng: 3)", "task family 'f': format=g: it is one of"),
    ],
)  # fmt: skip
def test_a_plugin_that_cannot_work_is_refused_in_one_sentence(folder: Path, added: str, message: str) -> None:
    (folder / "rewards.py").write_text(f"{REWARDS}\n{added}\n")
    refused = refusal(folder)
    assert refused.startswith(f"plugins=[rewards] in {folder}/plugins.yaml: ")
    with pytest.raises(UserError, match=message):
        raise UserError(refused)
    # Nothing stays registered, and a mended file is loaded.
    (folder / "rewards.py").write_text(REWARDS)
    use_plugins(str(folder))
    assert "close" in VERIFIERS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("plugins: [reward]", "there is neither {folder}/reward.py nor an installed module reward; name one"),
        ("plugins: [json]", "plugins=[json] in {folder}/plugins.yaml: it registers nothing"),
        ("plugins: rewards", "{folder}/plugins.yaml: it has one key, a list of modules; write plugins: [NAME]"),
        ("plugins: [rewards.py/]", "a plugin is the name of a module"),
        ("plugins: [rewards, rewards]", "plugins=[rewards] in {folder}/plugins.yaml: it is listed twice"),
        ("plugins: [", "{folder}/plugins.yaml: it cannot be read (while parsing a flow node"),
    ],
)
def test_the_list_of_plugins_is_checked(folder: Path, content: str, message: str) -> None:
    (folder / "plugins.yaml").write_text(content)
    assert message.format(folder=folder) in refusal(folder)


def test_code_that_hangs_is_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "IMPORT_SECONDS", 0.2)
    (folder / "rewards.py").write_text("while True: pass\n")
    assert "importing it takes more than 0.2 s; mend it" in refusal(folder)


def test_a_benchmark_that_raises_or_returns_no_questions_is_refused(folder: Path) -> None:
    for body, message in {"1 / 0": "raised ZeroDivisionError", "[1]": "item 1 is 1", "[]": "no items"}.items():
        (folder / "rewards.py").write_text(f"{REWARDS}\nbenchmark('b')(lambda: {body})\n")
        with pytest.raises(UserError, match=f"benchmark b: .*{message}"):
            compose_cell(["+evaluation.benchmarks.B={kind:sampled,group:math,task:b,items:4}"])


@pytest.mark.parametrize(
    ("kind", "body", "message"),
    [
        ("choice", "[('a', ['b'], 0)]", "item 1 is"),
        ("choice", "[('a', ['b', 'c'], 0), ('a', ['b', 'c'], 2)]", "item 2 is"),
        ("choice", "[('a', ['b', 'b'], 0)]", "at least two continuations that differ"),
        ("text", "['a', ' ']", "item 2 is ' '; return texts that are not empty"),
        ("text", "[]", "returns no items; return texts"),
    ],
)
def test_choices_and_texts_of_a_plugin_are_checked(folder: Path, kind: str, body: str, message: str) -> None:
    (folder / "rewards.py").write_text(f"{REWARDS}\nbenchmark('b', kind='{kind}')(lambda: {body})\n")
    with pytest.raises(UserError, match=f"benchmark b: .*{message}"):
        compose_cell([f"+evaluation.benchmarks.B={{kind:{kind},group:text,task:b,items:4}}"])


def test_a_benchmark_of_an_unknown_kind_is_refused(folder: Path) -> None:
    (folder / "rewards.py").write_text(f"{REWARDS}\nbenchmark('b', kind='chose')(lambda: [])\n")
    assert "benchmark 'b': kind=chose: did you mean 'choice'" in refusal(folder)


@pytest.mark.ci_only
def test_choices_and_texts_of_a_plugin_are_measured(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Their values are those of the model's own forward pass, and their code is in the signature."""
    words = [
        *SMALL[:-9],
        "until=pretrain",
        "data.text=[networkx]",
        "evaluation.text_length=24",
        "evaluation.controls={}",
        "evaluation.benchmarks={C:{kind:choice,group:logic,task:capitals,items:4},"
        "T:{kind:text,group:text,task:letters,items:99}}",
    ]
    words = [word for word in words if not word.startswith(("midtrain", "grpo"))]
    before = next(run for run in plan([compose_cell(words)]).runs.values() if run.stage == "evaluate")
    cell = compose_cell(words)
    place = tmp_path_factory.mktemp("measured")
    corpus = prepare(cell.data, place / "cache")
    model = build_model(cell.model, corpus.tokenizer, 10_000.0, seed=0).eval()
    with evaluation_context(corpus, place, cell.evaluation, model=model) as context:
        metrics = evaluate(context)["metrics"]

    def loss(tokens: list[int]) -> torch.Tensor:
        ids = torch.tensor([tokens])
        with torch.no_grad():
            log_probs = model(ids).logits.log_softmax(-1)[0, :-1]
        return -log_probs.gather(-1, ids[0, 1:, None])[:, 0]

    right = 0
    for beginning, continuations, best in [("France has", [" Rome", " Paris"], 1), ("Three:", [" a", " b", " c"], 0)]:
        start = corpus.encode(beginning)
        ends = [corpus.tokenizer.encode(text, add_special_tokens=False) for text in continuations]
        sums = [float(loss([*start, *end])[len(start) - 1 :].sum()) for end in ends]
        right += sums.index(min(sums)) == best
    assert metrics["C/accuracy"] == right / 2
    documents = [corpus.encode(f"Dear reader {i}, this is letter {i}.") for i in range(20)]
    # A row begins at the document which the row before it cut off.
    rows, tokens = [], [token for document in documents for token in document] + [corpus.tokenizer.eos_token_id]
    starts = [sum(map(len, documents[:i])) for i in range(20)]
    position = 0
    while position + 25 <= len(tokens):
        rows.append(tokens[position : position + 25])
        inside = [start for start in starts if position < start <= position + 24]
        position = inside[-1] if inside else position + 24
    expected = torch.cat([loss(row) for row in rows]).mean().exp()
    assert metrics["T/perplexity"] == pytest.approx(float(expected), rel=1e-5)
    (folder / "more" / "families.py").write_text(FAMILY.replace("Dear", "Kind"))
    after = next(run for run in plan([compose_cell(words)]).runs.values() if run.stage == "evaluate")
    assert (before.parent, before.signature != after.signature) == (after.parent, True)


def test_entry_points_of_installed_packages_are_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verifiers and tasks register when their module is imported; engines and trackers are only named."""
    (folder / "installed.py").write_text(
        "from pipelines.plugins import verifier\n@verifier('far')\ndef far(a, b): return 0\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    points = [
        EntryPoint("far", "installed", "shaping.verifiers"),
        EntryPoint("remote", "no_such_module:Engine", "shaping.engines"),
        EntryPoint("board", "no_such_module:Board", "shaping.trackers"),
    ]
    monkeypatch.setattr(loading, "entry_points", lambda: EntryPoints(points))
    monkeypatch.setattr(loading._Loaded, "installed", False)
    try:
        use_plugins(None)
        assert VERIFIERS["far"].source.startswith("installed ")
        assert ENGINES["remote"] == "no_such_module:Engine"
        assert TrackingConfig(others=["board"]).others == ["board"]
        with pytest.raises(UserError, match=r"tracking\.others=bored: did you mean 'board'"):
            TrackingConfig(others=["bored"])
    finally:
        VERIFIERS.pop("far", None)
        ENGINES.pop("remote", None)
        OTHER_TRACKERS.clear()
    with pytest.raises(UserError, match=r"tracking\.others=board: no installed package has an entry point"):
        TrackingConfig(others=["board"])
