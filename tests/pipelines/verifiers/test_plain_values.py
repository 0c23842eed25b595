"""Values that cross as data: what is sent is what is rebuilt, what is no value is refused, and nothing runs."""

import collections
import datetime
import decimal
import enum
import fractions
import json
import math
import os
import re
import struct
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.verifiers.plain_values import LONGEST, Closed, NotPlain, decoded, encoded, receive, send


def unfolded(time: Any) -> Any:
    """Without the mark of an hour that clocks show twice, which is lost."""
    return time.replace(fold=0)


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers()
    | st.fractions() | st.decimals(allow_nan=False) | st.dates() | (st.times() | st.datetimes()).map(unfolded)
    | st.timedeltas()
)  # fmt: skip
KEYS = st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.fractions()
VALUES = st.recursive(
    SCALARS,
    lambda parts: st.lists(parts) | st.lists(parts).map(tuple) | st.dictionaries(KEYS | st.tuples(KEYS), parts)
    | st.lists(parts).map(collections.deque),
    max_leaves=8,
)  # fmt: skip


def crossed(value: Any) -> Any:
    return decoded(json.loads(json.dumps(encoded(value))))


@given(VALUES)
def test_a_value_is_rebuilt_as_it_was(value: Any) -> None:
    assert repr(crossed(value)) == repr(value)  # repr tells -0.0, 1 and True apart, and NaN equals NaN


@given(st.frozensets(KEYS))
def test_a_set_is_rebuilt_with_its_elements(value: frozenset[Any]) -> None:
    assert crossed(value) == value
    assert crossed(set(value)) == value
    assert type(crossed(set(value))) is set


class Point(NamedTuple):
    x: int
    y: list[int]


class Level(enum.IntEnum):
    HIGH = 3


class Liar(int):
    """Not what it says."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 4

    def __index__(self) -> int:
        return 4

    def __str__(self) -> str:
        return "4"


def test_objects_of_derived_classes_cross_as_what_they_hold() -> None:
    assert crossed(Point(1, [2])) == (1, [2])
    assert crossed(Point(1, [2])).y == [2]
    assert type(crossed(Point(1, [2]))) is not Point
    assert type(crossed(Level.HIGH)) is int
    assert crossed(Level.HIGH) == 3
    for lie in (Liar(99), [Liar(99)], {Liar(99): 1}, (Liar(99),), collections.Counter([Liar(99)])):
        assert repr(crossed(lie)).count("99") == 1
    lying = type("Lying", (list,), {"__iter__": lambda self: iter([4]), "__eq__": lambda *_: True})
    assert crossed(lying([99])) == [99]
    assert type(crossed(collections.OrderedDict(a=1))) is collections.OrderedDict
    assert list(crossed({"a": 1}.items())) == [("a", 1)]
    assert crossed({"a": 1}.keys()) == {"a"}


def test_arrays_cross_with_their_type() -> None:
    for array in (np.arange(6.0).reshape(2, 3), np.array([True]), np.array(["a", "bc"]), np.zeros((0, 2), np.int8)):
        rebuilt = crossed(array)
        np.testing.assert_array_equal(rebuilt, array)
        assert rebuilt.dtype == array.dtype
        assert rebuilt.shape == array.shape
        rebuilt[...] = array  # it can be written
    assert crossed(np.float64(0.5)) == 0.5
    assert type(crossed(np.int8(3))) is int


def nested(depth: int) -> Any:
    return [] if depth == 0 else [nested(depth - 1)]


@pytest.mark.parametrize(
    "value",
    [object(), Point, math, len, (part for part in ()), iter([]), np.array([object()]), nested(100), lambda: 1,
     np.datetime64("2020"), [object()], {"a": {1: object()}}],
)  # fmt: skip
def test_what_is_not_plain_does_not_cross(value: Any) -> None:
    if isinstance(value, np.datetime64):
        assert crossed(value) == datetime.date(2020, 1, 1)
        return
    with pytest.raises(NotPlain):
        encoded(value)


NO_VALUES = """
{} | {"a": 1} | [] | ["list"] | ["list", 1] | ["list", [1], 2] | [1, 2] | ["unknown", 1] | ["object", 1]
["pickle", "gA=="] | ["dict", [1]] | ["dict", [[1, 2, 3]]] | ["set", [["list", []]]]
["dict", [[["list", []], 1]]] | ["int", 3] | ["int", "x"] | ["bytes", "0"] | ["bytes", 3]
["complex", ["a"]] | ["range", [1, 2, 0]] | ["range", ["a"]] | ["Decimal", [0, [1], 2]] | ["Decimal", "x"]
["Fraction", ["1e9999999999"]] | ["Fraction", [1, 0]] | ["Fraction", [["Decimal", "1"], 2]] | ["date", "x"]
["date", 3] | ["timedelta", ["x"]] | ["timedelta", [10000000000]] | ["class", "Popen"] | ["class", 3]
["class", []] | ["array", ["O", [1], "AAAAAAAAAAA="]] | ["array", ["<f8", [2], "AAAA"]]
["array", ["<f8", [3], ""]] | ["array", []] | ["array", ["V8", [1], "AAAAAAAAAAA="]]
["array", ["x", [1], ""]] | ["array", ["<f8,O", [1], ""]] | ["array", 3]
["namedtuple", ["P", ["list", ["__eq__"]], ["list", [1]]]]
["namedtuple", ["P", ["list", ["x y"]], ["list", [1]]]]
["namedtuple", ["import os", ["list", ["x"]], ["list", [1]]]]
["namedtuple", ["P", ["list", ["x"]], ["list", []]]] | ["values", 3] | ["keys", [["list", []]]]
["Counter", [[1]]] | ["deque", null] | ["list", null]
"""


@pytest.mark.parametrize("data", [json.loads(data) for data in re.split(r" \| |\n", NO_VALUES.strip())])
def test_data_that_is_no_value_is_refused(data: Any) -> None:
    with pytest.raises(NotPlain):
        decoded(data)
    with pytest.raises(NotPlain):
        decoded(["list", [data]])


TAGS = st.sampled_from(["list", "dict", "array", "namedtuple", "class", "set", "range", "Decimal"])
JSON = st.recursive(
    st.none() | st.integers() | st.text() | TAGS,
    lambda parts: st.lists(parts, max_size=4) | st.tuples(TAGS, parts).map(list) | st.fixed_dictionaries({"a": parts}),
    max_leaves=10,
)
PLAIN = {"builtins", "collections", "decimal", "fractions", "datetime", "numpy"}


@given(JSON)
def test_any_json_is_a_plain_value_or_refused(data: Any) -> None:
    try:
        value = decoded(data)
    except NotPlain:
        return
    assert isinstance(value, tuple) or type(value).__module__ in PLAIN


@pytest.mark.parametrize(
    "content",
    [b"", b"\x05\0\0\0{}", struct.pack("=I", LONGEST + 1) + b"x", b"\x02\0\0\0{x", b"\x01\0\0\0\xff", b"\x02\0",
     struct.pack("=I", 20_000) + b"[" * 20_000, struct.pack("=I", 9_999) + b"9" * 9_999],
)  # fmt: skip
def test_a_broken_message_closes_the_connection(content: bytes) -> None:
    reader, writer = os.pipe()
    os.write(writer, content)
    os.close(writer)
    with pytest.raises(Closed):
        receive(reader)
    os.close(reader)


def test_a_message_arrives_and_one_that_is_too_long_is_not_sent() -> None:
    reader, writer = os.pipe()
    message = {"value": ["list", [1, "\ud800", None]]}
    send(writer, message)
    assert receive(reader) == message
    with pytest.raises(NotPlain, match="longer than"):
        send(writer, "x" * LONGEST)
    os.close(reader)
    os.close(writer)


def test_numbers_of_any_size_cross() -> None:
    for value in (2**64, -(2**64), 10**6000, fractions.Fraction(1, 3**5000), decimal.Decimal("1e-5000")):
        assert crossed(value) == value
