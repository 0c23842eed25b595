"""How overrides change a configuration: what Hydra composes, what is shown, and what runs are the same."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import UserError
from sweeps.compose.cells import compose_cell, compose_cells, compose_jobs, composed
from sweeps.plan.planner import plan

MIXTURES = [
    (["pretrain.mixture={text:0.9,chain3:0.1}"], {"text": 0.9, "chain3": 0.1}),
    (["pretrain.mixture={text:0.9}", "pretrain.mixture={chain3:1}"], {"chain3": 1.0}),
    (["++pretrain.mixture={text:0.9}", "++pretrain.mixture={chain3:1}"], {"chain3": 1.0}),
    (["pretrain.mixture={text:1}", "+pretrain.mixture={chain3:2}", "+pretrain.mixture={chain4:3}"],
     {"text": 1.0, "chain3": 2.0, "chain4": 3.0}),
    (["pretrain.mixture={text:1}", "pretrain.mixture.text=2", "+pretrain.mixture.order=3"],
     {"text": 2.0, "order": 3.0}),
    (["pretrain.mixture.text=0.9", "pretrain.mixture={order:1}"], {"order": 1.0}),
    (["pretrain.mixture={order:1}", "pretrain.mixture={text:1,order:1}", "~pretrain.mixture.order"], {"text": 1.0}),
    (["pretrain.mixture={text: 1, order: 3}"], {"text": 1.0, "order": 3.0}),
    (["pretrain.mixture={text:1}", "+pretrain.mixture.chain3=1", "++pretrain.mixture.chain3=2"],
     {"text": 1.0, "chain3": 2.0}),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "mixture"), MIXTURES, ids=lambda value: " ".join(value))
def test_a_typed_mapping_replaces_and_one_with_plus_adds(arguments: list[str], mixture: dict[str, float]) -> None:
    """In the cell, in the quick composition of a sweep, and in what --cfg job shows."""
    assert compose_cells(arguments)[0].pretrain.mixture == mixture
    cells = compose_jobs([arguments, ["seed=2", *arguments]])
    assert [cell.pretrain.mixture for cell in cells] == [mixture, mixture]
    ((_, shown),) = composed(arguments)
    assert dict(shown.pretrain.mixture) == mixture
    runs = plan(compose_cells([*arguments, "until=pretrain"])).runs.values()
    assert next(run for run in runs if run.stage == "pretrain").config["pretrain"]["mixture"] == mixture


SOURCES = [
    ["+data.sources.mine={kind:jsonl,path:a.jsonl,column:body}"],
    ["++data.sources.mine={kind:jsonl,path:a.jsonl,column:body}"],
    ["+data.sources={mine:{kind:jsonl,path:a.jsonl,column:body}}"],
    ["++data.sources={mine:{kind:jsonl,path:a.jsonl,column:body}}"],
    ["data.sources={mine:{kind:jsonl,path:a.jsonl,column:body}}"],
    ["data.sources={mine: {kind: jsonl, path: 'a.jsonl', column: body}}"],
    ["+data.sources.mine.kind=jsonl", "+data.sources.mine.path=a.jsonl", "+data.sources.mine.column=body"],
    ["++data.sources.mine.kind=jsonl", "++data.sources.mine.path=a.jsonl", "++data.sources.mine.column=body"],
    ["+data.sources.mine={kind:jsonl,path:a.jsonl}", "data.sources.mine.column=body"],
    ["+data.sources.mine={kind:text,path:b}", "data.sources.mine={kind:jsonl,path:a.jsonl,column:body}"],
    ["+data.sources.mine={kind:jsonl,path:a.jsonl}", "+data.sources.mine={column:body}"],
]


@pytest.mark.parametrize("arguments", SOURCES, ids=" ".join)
def test_a_source_is_added_in_every_spelling(arguments: list[str]) -> None:
    for cell in [compose_cell(arguments), *compose_jobs([arguments, ["seed=2", *arguments]])]:
        (source,) = cell.data.sources.items()
        assert source[0] == "mine"
        assert (source[1].kind, source[1].path, source[1].column) == ("jsonl", "a.jsonl", "body")
        assert source[1].split == "train"


def test_several_sources_and_benchmarks_are_added_together(tmp_path: Path) -> None:
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"question": "1+1?", "answer": 2}\n')
    benchmark = f"{{kind:sampled,group:math,task:marked,items:1,dataset:{questions}}}"
    whole = ["+data.sources.a={kind:text,path:a}", "+data.sources.b={kind:text,path:b}",
             f"+evaluation.benchmarks.Mine={benchmark}"]  # fmt: skip
    keys = ["kind=sampled", "group=math", "task=marked", "items=1", f"dataset={questions}"]
    by_key = [*whole[:2], *(f"+evaluation.benchmarks.Mine.{key}" for key in keys)]
    cells = [compose_cell(whole), compose_cells(by_key)[0], compose_jobs([whole, ["seed=2"]])[0]]
    assert cells[0] == cells[1] == cells[2]
    assert list(cells[0].data.sources) == ["a", "b"]
    assert cells[0].evaluation.benchmarks["Mine"].task == "marked"
    assert len(cells[0].evaluation.benchmarks) == 10
    only = compose_cell([f"evaluation.benchmarks={{Mine:{benchmark}}}", "evaluation.controls={}"])
    assert list(only.evaluation.benchmarks) == ["Mine"]
    without = compose_cell(["~evaluation.benchmarks.Python", "~evaluation.benchmarks.Order"])
    assert len(without.evaluation.benchmarks) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["+seed=4"], r"\+seed: this key exists already; leave out the \+"),
        (["+grpo.steps=4"], r"\+grpo\.steps: this key exists already"),
        (["data.sources.mine={kind:jsonl,path:a}"], r"sources\.mine: unknown key; \+data\.sources\.mine=\.\.\. adds"),
        (["data.sources.mine.kind=jsonl"], r"data\.sources\.mine\.kind: unknown key"),
        (["+data.sources.mine={knd:jsonl,path:a}"], r"data\.sources\.mine\.knd: unknown key; did you mean .*kind"),
        (["+data.sources.mine={kind:jsonl}"], r"data\.sources\.mine\.path: it has no value"),
        (["+data.sources.mine=3"], r"data\.sources\.mine=3: it must be a mapping"),
        (["+data.sources.mine.kind.x=3"], r"data\.sources\.mine"),
        (["pretrain.mixture={text:half}"], r"pretrain\.mixture\.text=half: it must be a number"),
        (["pretrain.mixture=3"], r"pretrain\.mixture=3: it must be a mapping"),
        (["pretrain.mixture=[text]"], r"pretrain\.mixture=\[text\]: it must be a mapping"),
        (["data.text=3"], r"data\.text=3: it must be a list"),
        (["data.text={a:1}"], r"data\.text=.*: it must be a list"),
        (["pretrain.tokens=[1]"], r"pretrain\.tokens=\[1\]: it must be a single value"),
        (["pretrain.tokens=null"], r"pretrain\.tokens=None: it must be a value, which null is not"),
        (["seed=[1]"], r"seed=\[1\]: it must be a single value"),
        (["scale={a:1}"], r"scale=\{a:1\}: it must be a single value"),
        (["scale=null"], r"scale=None: it must be a value, which null is not"),
        (["~pretrain.mixture"], r"~pretrain\.mixture: only an entry of a mapping can be deleted"),
        (["~seed"], r"~seed: only an entry of a mapping can be deleted"),
        (["~evaluation.benchmarks.Pyton"], r"evaluation\.benchmarks\.Pyton"),
        (["+objetive=ce"], r"objetive"),
        (["grpo.tasks.0=chain9"], r"grpo\.tasks=chain9: did you mean 'chain5'"),
        (["+grpo.tasks.7=chain3"], r"grpo\.tasks\.7: a list is set as a whole: grpo\.tasks=\[\.\.\.\]"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_with_the_key(arguments: list[str], message: str) -> None:
    for jobs in ([arguments], [arguments, ["seed=2", *arguments]]):
        with pytest.raises(UserError, match=message) as caught:
            compose_jobs(jobs)
        assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("value", ["7", "x", "1.5", "null", "[1]", "{a:1}"])
@pytest.mark.parametrize("key", ["seed", "scale"])
def test_single_values_have_the_type_of_a_cell_in_both_compositions(key: str, value: str) -> None:
    def outcome(jobs: list[list[str]]) -> Any:
        try:
            return getattr(compose_jobs(jobs)[0], key)
        except UserError as error:
            return str(error).split("   [cell")[0]

    assert outcome([[f"{key}={value}"]]) == outcome([[f"{key}={value}"], ["grpo.steps=7"]])
