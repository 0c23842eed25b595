"""Plain values as data: how values cross between the interpreter of a program and that of its tests.

A plain value is a number, a string, bytes, a container of the standard library or an array of numbers or strings.
`encoded` gives it as what JSON can hold, `decoded` rebuilds it, and both follow the exact type only: an object of a
class that is derived from a plain type crosses as the plain value that it holds, without its methods. Messages are
frames of JSON with their length, limited in size; nesting is limited in depth.
"""

import base64
import builtins
import collections
import datetime
import decimal
import fractions
import json
import operator
import os
import struct
from collections.abc import Callable, Iterable
from typing import Any

try:
    import numpy
except ImportError:  # arrays then do not cross
    numpy = None  # type: ignore[assignment]

LONGEST = 16 << 20
"""Bytes of a message."""
DEPTH = 100
"""Levels of nested containers."""

Outside = Callable[[Any], Any]
"""How to encode, or to decode the data of, a value that is not plain."""


class NotPlain(Exception):
    """A value that cannot cross, or data that is no value."""


class Closed(Exception):
    """The other process has closed its end of the pipe, or sent what is not a message."""


# Frames


def send(pipe: int, message: object) -> None:
    """Write a message. Raises `NotPlain` if it is too long and `OSError` if nobody reads."""
    content = json.dumps(message, separators=(",", ":")).encode()
    if len(content) > LONGEST:
        raise NotPlain(f"a value of {len(content)} bytes is longer than {LONGEST}")
    unsent = memoryview(struct.pack("=I", len(content)) + content)
    while unsent:
        unsent = unsent[os.write(pipe, unsent) :]


def receive(pipe: int) -> Any:
    """The next message. Raises `Closed`."""
    (length,) = struct.unpack("=I", _read(pipe, 4))
    if length > LONGEST:
        raise Closed(f"a message of {length} bytes")
    try:
        return json.loads(_read(pipe, length))
    except (ValueError, RecursionError) as error:
        raise Closed(f"no message: {error}") from None


def _read(pipe: int, length: int) -> bytes:
    parts = []
    while length:
        part = os.read(pipe, min(length, 1 << 16))
        if not part:
            raise Closed("the pipe is closed")
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


# Values. JSON's own scalars stand for themselves; everything else is a list [tag, content].

_SEQUENCES: dict[str, Callable[[Iterable[Any]], Any]] = {
    "list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "deque": collections.deque,
    "keys": lambda items: dict.fromkeys(items).keys(), "values": lambda items: dict(enumerate(items)).values(),
}  # fmt: skip
_MAPPINGS: dict[str, Callable[[Iterable[Any]], Any]] = {
    "dict": dict, "OrderedDict": collections.OrderedDict, "Counter": lambda items: collections.Counter(dict(items)),
    "defaultdict": lambda items: collections.defaultdict(None, items), "items": lambda items: dict(items).items(),
}  # fmt: skip
_TEXTS: dict[str, Callable[[str], Any]] = {
    "int": lambda text: int(text, 16), "bytes": bytes.fromhex, "bytearray": bytearray.fromhex,
    "Decimal": decimal.Decimal,
    "date": datetime.date.fromisoformat, "time": datetime.time.fromisoformat,
    "datetime": datetime.datetime.fromisoformat,
}  # fmt: skip
_NUMBERS: dict[str, Callable[..., Any]] = {
    "complex": complex, "range": range, "timedelta": lambda *parts: datetime.timedelta(*parts),
    # not from text, of which a few characters can be a number that does not fit into memory
    "Fraction": lambda over, under: fractions.Fraction(operator.index(over), operator.index(under)),
}  # fmt: skip
_CLASSES: dict[str, type] = {kind.__name__: kind for kind in vars(builtins).values() if isinstance(kind, type)}
_CLASSES["NoneType"] = type(None)
_SMALL = 1 << 64


def encoded(value: Any, outside: Outside | None = None, depth: int = DEPTH) -> Any:
    """What JSON can hold for a plain value. Raises `NotPlain` for others unless `outside` encodes them.

    `depth` is how many levels of containers are still allowed.
    """
    kind = type(value)
    if value is None or kind is str or kind is float or kind is bool:
        return value
    if kind is int:
        return value if -_SMALL < value < _SMALL else ["int", f"{value:x}"]
    if depth <= 0:
        raise NotPlain(f"a value is nested deeper than {DEPTH} levels")
    for base in kind.__mro__[:-1]:
        encode = _ENCODERS.get(base)
        if encode is not None and (base is not type or _CLASSES.get(value.__name__) is value):
            tag, content = encode(value, lambda part: encoded(part, outside, depth - 1))
            return content if tag == "scalar" else [tag, content]
    if outside is not None:
        return outside(value)
    raise NotPlain(f"an object of {kind.__module__}.{kind.__qualname__} is not a plain value")


def decoded(data: Any, outside: Outside | None = None, depth: int = DEPTH) -> Any:
    """The value that `encoded` gave as `data`. `outside` receives the pairs with an unknown tag.

    Raises `NotPlain` for data that `encoded` does not produce.
    """
    if not isinstance(data, list):
        if isinstance(data, dict):
            raise NotPlain("a JSON object is no value")
        return data
    if depth <= 0 or len(data) != 2 or not isinstance(data[0], str):
        raise NotPlain("data without a tag, or nested too deeply")
    tag, content = data

    def inner(part: Any) -> Any:
        return decoded(part, outside, depth - 1)

    try:
        if tag in _SEQUENCES:
            return _SEQUENCES[tag]([inner(part) for part in content])
        if tag in _MAPPINGS:
            return _MAPPINGS[tag]([(inner(key), inner(part)) for key, part in content])
        if tag in _TEXTS and isinstance(content, str):
            return _TEXTS[tag](content)
        if tag in _NUMBERS:
            return _NUMBERS[tag](*map(inner, content))
        if tag == "class":
            return _CLASSES[content]
        if tag == "namedtuple":
            name, fields, values = map(inner, content)
            return collections.namedtuple(name, fields)(*values)  # it checks that these are names
        if tag == "array":
            return _array(*content)
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise NotPlain(f"data of {tag} that is no value: {error}") from None
    if outside is None:
        raise NotPlain(f"unknown tag {tag}")
    return outside(data)


Encode = Callable[[Any], Any]


def _sequence(tag: str, base: Any) -> Callable[[Any, Encode], tuple[str, Any]]:
    """An encoder that uses the iterator of `base`, whatever a derived class defines."""
    return lambda value, encode: (tag, [encode(part) for part in base.__iter__(value)])


def _mapping(tag: str, base: Any) -> Callable[[Any, Encode], tuple[str, Any]]:
    return lambda value, encode: (tag, [[encode(key), encode(part)] for key, part in base.items(value)])


def _scalar(base: Any) -> Callable[[Any, Encode], tuple[str, Any]]:
    return lambda value, encode: ("scalar", encode(base(value)))


def _tuple(value: Any, encode: Encode) -> tuple[str, Any]:
    fields = getattr(type(value), "_fields", None)
    values = [encode(part) for part in tuple.__iter__(value)]
    if not fields or len(fields) != len(values):
        return "tuple", values
    return "namedtuple", [type(value).__name__, ["list", list(fields)], ["list", values]]


_ENCODERS: dict[type, Callable[[Any, Encode], tuple[str, Any]]] = {
    int: _scalar(int.__index__),
    float: _scalar(float.__float__),
    str: _scalar(lambda value: str.__getitem__(value, slice(None))),
    bytes: lambda value, encode: ("bytes", bytes.hex(value)),
    bytearray: lambda value, encode: ("bytearray", bytearray.hex(value)),
    complex: lambda value, encode: ("complex", [encode(value.real), encode(value.imag)]),
    range: lambda value, encode: ("range", [encode(part) for part in (value.start, value.stop, value.step)]),
    list: _sequence("list", list),
    tuple: _tuple,
    set: _sequence("set", set),
    frozenset: _sequence("frozenset", frozenset),
    collections.deque: _sequence("deque", collections.deque),
    type({}.keys()): _sequence("keys", type({}.keys())),
    type({}.values()): _sequence("values", type({}.values())),
    type({}.items()): lambda value, encode: ("items", [[encode(key), encode(part)] for key, part in value]),
    collections.OrderedDict: _mapping("OrderedDict", collections.OrderedDict),
    collections.Counter: _mapping("Counter", dict),
    collections.defaultdict: _mapping("defaultdict", dict),
    dict: _mapping("dict", dict),
    decimal.Decimal: lambda value, encode: ("Decimal", decimal.Decimal.__str__(value)),
    fractions.Fraction: lambda value, encode: ("Fraction", [encode(value.numerator), encode(value.denominator)]),
    datetime.datetime: lambda value, encode: ("datetime", datetime.datetime.isoformat(value)),
    datetime.date: lambda value, encode: ("date", datetime.date.isoformat(value)),
    datetime.time: lambda value, encode: ("time", datetime.time.isoformat(value)),
    datetime.timedelta: lambda value, encode: ("timedelta", [value.days, value.seconds, value.microseconds]),
    type: lambda value, encode: ("class", value.__name__),
}


def _array_content(value: Any, encode: Encode) -> tuple[str, Any]:
    if value.dtype.kind not in "biufcSU":
        raise NotPlain(f"an array of {value.dtype} is not a plain value")
    return "array", [value.dtype.str, list(value.shape), base64.b64encode(value.tobytes()).decode()]


def _array(kind: str, shape: list[int], content: str) -> Any:
    if numpy.dtype(kind).kind not in "biufcSU":
        raise NotPlain(f"an array of {kind} is no value")
    return numpy.frombuffer(base64.b64decode(content), numpy.dtype(kind)).reshape(shape).copy()


if numpy is not None:
    _ENCODERS[numpy.ndarray] = _array_content
    _ENCODERS[numpy.generic] = _scalar(lambda value: value.item())
