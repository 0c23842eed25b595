"""Files of sweeps: every value of YAML reaches the cells as it is, and a file that is wrong is named with its line."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from pipelines.errors import UserError
from sweeps.compose.cells import compose_cells
from sweeps.compose.config_files import CONFIG_DIR_VARIABLE
from sweeps.compose.expansion import expand
from sweeps.compose.named_sweeps import literal

Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes sweep/NAME.yaml into a folder of one's own, which commands search."""
    monkeypatch.setenv(CONFIG_DIR_VARIABLE, str(tmp_path))
    (tmp_path / "sweep").mkdir()

    def write(content: Any, name: str = "mine") -> None:
        text = content if isinstance(content, str) else json.dumps({"name": name, **content})
        (tmp_path / "sweep" / f"{name}.yaml").write_text(text)

    return write


VALUES = [
    *["a=b", "c,d", "it's", 'say "x"', "two words", "null", "Null", "true", "1e-3", "007", "[x", "{y}", "a#b", "$x"],
    *["a:b", " padded ", "ü", "日本", "back\\slash", "quote\\'", "ends\\", "a;b|c&d", "nan", "-inf", "~", "x'y\"z"],
    *["range(1,3)", "", "line\nbreak", "tab\t", "%s", "@", "a/b.c-d", "${seed}", "x${seed}y", "1_000", "0x1f", "off"],
    *[3, -2.5, 1e-30, 1e16, True, None, float("inf"), [1, "a,b", [None, "x=y"]], [], {}, {"text": 0.5, "chain3": 1}],
    *[{"a b": "c:d", "e,f": [1, {"g=h": "i]"}]}, {4: "x"}],
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_of_yaml_is_written_as_hydra_reads_it(value: Any) -> None:
    assert OverridesParser.create().parse_override(f"key={literal(value)}").value() == value


def test_any_text_reaches_the_cells(write: Write) -> None:
    texts = [
        value
        for value in VALUES
        if isinstance(value, str) and value.strip() and value.isprintable() and "$" not in value
    ]
    write({"grid": {"scale": texts}})
    assert [cell.scale for cell in compose_cells(["+sweep=mine"])] == texts
    write({"points": [{"scale": text, "seed": 5} for text in texts]})
    assert [cell.scale for cell in compose_cells(["+sweep=mine"])] == texts


def test_a_mixture_is_swept_and_replaces_the_default_one(write: Write) -> None:
    mixtures = [{"text": 0.5, "chain3": 0.5}, {"order": 1.0}]
    write({"points": [{"pretrain.mixture": mixture} for mixture in mixtures]})
    assert [cell.pretrain.mixture for cell in compose_cells(["+sweep=mine"])] == mixtures
    write({"grid": {"pretrain.mixture": mixtures, "evaluation.pass_k": [[1, 2], [4]], "tracking.entity": [None, "us"]}})
    cells = compose_cells(["+sweep=mine"])
    assert len(cells) == 8
    assert [cell.pretrain.mixture for cell in cells[::4]] == mixtures
    assert {tuple(cell.evaluation.pass_k) for cell in cells} == {(1, 2), (4,)}
    typed = compose_cells(["+sweep=mine", "pretrain.mixture={text:1}"])
    assert {str(cell.pretrain.mixture) for cell in typed} == {"{'text': 1.0}"}


def test_interpolations_are_resolved_in_each_cell(write: Write) -> None:
    write({"grid": {"pretrain.learning_rate": [0.01, 0.02], "midtrain.learning_rate": ["${pretrain.learning_rate}"]}})
    cells = compose_cells(["+sweep=mine"])
    assert [(c.pretrain.learning_rate, c.midtrain.learning_rate) for c in cells] == [(0.01, 0.01), (0.02, 0.02)]


def test_values_of_several_keys_are_taken_together(write: Write) -> None:
    write({"zip": {"seed": [1, 2], "grpo.steps": [10, 20]}, "grid": {"objective": ["ce", "precision"]}})
    cells = compose_cells(["+sweep=mine"])
    assert [(c.seed, c.grpo.steps, c.objective.name) for c in cells] == [
        (1, 10, "ce"), (1, 10, "precision"), (2, 20, "ce"), (2, 20, "precision")
    ]  # fmt: skip


def test_several_sweeps_are_all_run(write: Write) -> None:
    write({"grid": {"seed": [3, 4]}}, "one")
    write({"points": [{"objective": "precision"}, {"objective": "diversity"}]}, "two")
    cells = compose_cells(["+sweep=one,two", "grpo.steps=5,6"])
    assert [(c.sweep.name, c.seed, c.objective.name) for c in cells[::2]] == [
        ("one", 3, "ce"), ("one", 4, "ce"), ("two", 1, "precision"), ("two", 1, "diversity")
    ]  # fmt: skip
    assert len(cells) == 8
    assert len(compose_cells(["+sweep=choice(one,two)"])) == 4
    assert len(compose_cells(["+sweep=glob(one)"])) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name: mine\ngrid: {seed: [1, 2\n", r"sweep/mine\.yaml:3: .*correct this YAML"),
        ("name: mine\ngrid:\n\tseed: [1]\n", r"sweep/mine\.yaml:3: .*'\\t' that cannot start any token"),
        ("name: 'mine\n", r"sweep/mine\.yaml:2: .*quoted scalar"),
        ("name: mine\ngrid: *nothing\n", r"sweep/mine\.yaml:2: found undefined alias"),
        ("name: mine\nname: mine\n", r"sweep/mine\.yaml:2: .*duplicate key name"),
        (
            "name: mine\n# \x01\n",
            r"unacceptable character #x0001: special characters are not allowed.*correct this YAML",
        ),
        ("- seed: 1\n", r"\+sweep=mine: its file is no mapping; give it the keys name, points, grid, zip"),
        ("name: mine\ngird: {seed: [1]}\n", r"gird: unknown key; did you mean 'grid'"),
        ("name: mine\ngrid: {seed: 3}\n", r"grid\.seed=3: it is a list: seed: \[3\]"),
        ("name: mine\ngrid: [seed]\n", r"grid=\['seed'\]: it is a mapping"),
        ("name: mine\ngrid: {seed: []}\n", r"sweep=mine: it has no cells"),
        ("name: mine\npoints: {seed: 1}\n", r"points=.*it is a list of cells"),
        ("name: mine\npoints: [seed]\n", r"points=.*it is a list of cells"),
        ("name: mine\n", r"sweep=mine: it has no cells"),
        ("", r"sweep=mine|sweep: it has no cells|sweep=: it has no cells"),
        ("name: mine\nzip: {seed: [1, 2], grpo.steps: [1]}\n", r"zip takes one value .* seed has 2, grpo\.steps has 1"),
        ("name: mine\ngrid: {seed: [x]}\n", r"seed=x: it must be a whole number"),
        ("name: mine\ngrid: {sede: [1]}\n", r"sede: unknown key; did you mean 'seed'"),
        (
            'name: mine\npoints: [{pretrain.mixture: {"it\'s": 1}}]\n',
            r"sweep=mine: pretrain\.mixture.*Hydra reads another",
        ),
    ],
)
def test_a_wrong_file_is_one_sentence(write: Write, content: str, message: str) -> None:
    write(content)
    with pytest.raises(UserError) as caught:
        compose_cells(["+sweep=mine"])
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_utf8_is_named(tmp_path: Path, write: Write) -> None:
    (tmp_path / "sweep" / "mine.yaml").write_bytes(b"name: \xfc\n")
    with pytest.raises(UserError, match=r"sweep/mine\.yaml: .*save it as UTF-8"):
        compose_cells(["+sweep=mine"])


def test_a_file_of_ones_own_replaces_ours(tmp_path: Path, write: Write) -> None:
    write({"grid": {"seed": [7]}}, "nano")
    assert [cell.seed for cell in compose_cells(["+sweep=nano"])] == [7]
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "wide.yaml").write_text("defaults: [nano]\nname: wide\nd_model: 128\n")
    assert compose_cells(["model=wide"])[0].model.d_model == 128


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("seed=range(0)", "it has no values"),
        ("seed=range(5,1)", "it has no values"),
        ("seed=range(1,5,-1)", "it has no values"),
        ("seed=range(0,1000000000)", "1,000,000,000 cells, and a command may have 100,000"),
        ("seed=range(1,4,0)", "the step is not 0"),
        ("grpo.temperature=range(0.0,1e12,0.1)", "cells, and a command may have 100,000"),
        ("objective=glob(x*)", "it matches nothing; its options are ce, diversity"),
        ("seed=glob(*)", "seed is no group of options"),
        ("seed=choice()", "empty choice is not legal"),
        ("objective=ce,", "there is no value beside a comma"),
        ("objective=,ce", "there is no value beside a comma"),
        ("seed=1,,2", "there is no value beside a comma"),
        ("data.text=[a,,b]", "there is no value beside a comma"),
        ("seed=[1", "'[' has no counterpart"),
        ("seed=1]", "']' has no counterpart"),
        ("scale=a#b", "'#' only inside quotes, so quote the value: \"scale='a#b'\""),
        ("scale=a>b", "'>' only inside quotes"),
        ("scale=ü", "'ü' only inside quotes"),
        ("scale='a", "a quotation mark is not closed"),
        ("scale=a=b", "quote the value: \"scale='a=b'\""),
        ("scale=(a)", "quote the value"),
        ("words", "if it belongs to the value before it, quote them together"),
        ("se ed=1", "a key has letters, digits, _, - and dots"),
        ("seed:1", "it is not of the form key=value"),
    ],
)
def test_a_mistyped_sweep_or_value_is_one_sentence(argument: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        compose_cells([argument])
    assert str(caught.value).startswith(argument.split("=")[0])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_many_combinations_are_refused_before_they_are_made() -> None:
    with pytest.raises(UserError, match="a command may have 100,000"):
        expand(["seed=range(0,1000)", "grpo.steps=range(1,1000)", "objective=ce,precision"])
