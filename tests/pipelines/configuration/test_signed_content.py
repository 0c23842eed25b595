"""Configurations as the plain values that are hashed."""

from dataclasses import asdict, dataclass, field

from omegaconf import OmegaConf

from pipelines.configuration.signed_content import added_later, signed_content


@dataclass
class Row:
    items: int = 3
    penalty: float = added_later(as_before=0.0)


@dataclass
class Table:
    rows: dict[str, Row] = field(default_factory=lambda: {"one": Row()})
    more: list[Row] = field(default_factory=lambda: [Row(1), Row(2, 0.5)])
    names: list[str] = added_later(as_before=["a"])


def test_keys_at_their_value_as_before_are_left_out_at_any_depth() -> None:
    assert signed_content(Table()) == {
        "rows": {"one": {"items": 3}},
        "more": [{"items": 1}, {"items": 2, "penalty": 0.5}],
    }
    assert signed_content(Table(names=["b"]))["names"] == ["b"]
    assert signed_content(Table({"one": Row(3, 0.1)}))["rows"] == {"one": {"items": 3, "penalty": 0.1}}


def test_without_later_keys_it_is_asdict() -> None:
    @dataclass
    class Plain:
        pair: tuple[int, int] = (1, 2)
        nested: dict[str, list[int]] = field(default_factory=lambda: {"a": [1]})

    assert signed_content(Plain()) == asdict(Plain()) | {"pair": [1, 2]}


def test_a_later_key_has_a_default_of_its_own_and_a_type_for_hydra() -> None:
    first, second = Table(), Table()
    first.names.append("b")
    assert second.names == ["a"]
    assert OmegaConf.to_object(OmegaConf.structured(Table)) == Table()
