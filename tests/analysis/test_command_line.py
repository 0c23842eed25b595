"""Options of the form key=value: their values, and a sentence for a mistake."""

from dataclasses import dataclass, field

import pytest

from analysis.command_line import parse_options
from pipelines.errors import UserError


@dataclass
class Options:
    """Options of every type that the commands have."""

    store: str = "store"
    seeds: int = 3
    share: float = 0.5
    formats: list[str] = field(default_factory=lambda: ["md"])
    figures: bool = True


def test_every_argument_sets_its_option_and_the_last_of_a_key_holds() -> None:
    arguments = ["store=a b", "seeds=5", "share=1e-3", "formats=[csv,tex]", "figures=false", "seeds=7"]
    assert parse_options(Options, arguments) == Options("a b", 7, 0.001, ["csv", "tex"], figures=False)
    assert parse_options(Options, []) == Options()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("sedes=5", "sedes: unknown key; did you mean 'seeds'"),
        ("seeds=five", "seeds=five: it must be a whole number"),
        ("seeds", "seeds: it is not of the form key=value"),
        ("--wach", "--wach: unknown flag; did you mean '--watch'"),
        ("formats=[md", "formats=[md: '[md' is no value"),
    ],
)
def test_a_mistake_is_a_sentence_with_the_argument(argument: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_options(Options, ["store=x", argument], flags=["--watch"])
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(("argument", "message"), [("sedes=5", "did you mean 'seeds'"), ("seeds=x", "whole number")])
def test_it_is_the_same_in_a_debugger(argument: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """OmegaConf, which looks at this variable and for a debugger, then raises an error as its own cause."""
    monkeypatch.setenv("OC_CAUSE", "1")
    with pytest.raises(UserError, match=message):
        parse_options(Options, [argument])
