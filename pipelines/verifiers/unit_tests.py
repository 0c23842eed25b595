"""The side of the tests: runs them in a clean interpreter, where the program's functions are stand-ins.

A name that the tests do not define is looked up in the program. A function of it is a `Reference`: a call sends its
arguments as plain values, and returns a plain value rebuilt from data or raises an exception of this interpreter. So
whatever the tests compare is a value of this interpreter. Any other object is a `Reference` too, which the tests can
only call or pass back. Names that begin with a capital letter are classes by convention: of their instances, and of
what is reached from those by attributes, tests may also call methods and read attributes.

A program that ends early, or sends something that is not an answer, has failed, whatever the tests make of it. Tests
that need what does not work between two interpreters are a failure of ours, not of the program.
"""

import builtins
import collections
import collections.abc
import contextlib
import importlib
import io
import sys
from collections.abc import Callable, Iterator
from typing import Any

from pipelines.verifiers.plain_values import Closed, NotPlain, decoded, encoded, receive, send

_MODULES = (
    "array", "bisect", "cmath", "collections", "copy", "datetime", "decimal", "fractions", "functools", "heapq", "io",
    "itertools", "json", "math", "numpy", "operator", "random", "re", "statistics", "string", "sys", "time", "typing",
)  # fmt: skip
_MODULE_NAMES = {name: name for name in _MODULES} | {"np": "numpy", "dt": "datetime"}
"""Modules that tests may use though only the program has imported them: name -> module. Tests get their own import."""
_ITERATED = 100_000
"""The most elements of an iterator that tests pass to a program."""
_CHUNK = 512


class Stop(BaseException):
    """The tests cannot go on: the program has ended, or they need what does not work between two interpreters."""


class Program:
    """The connection to the process of the program."""

    def __init__(self, reader: int, writer: int) -> None:
        self._reader, self._writer = reader, writer
        self._functions: list[Any] = []
        self._exceptions: dict[str, type[BaseException]] = {}
        self._instances: dict[int, Instance] = {}
        self.input: Any = None
        """The standard input of the tests when they began; what they replace it by is the program's input."""
        self.ended: str | None = None
        """How the program ended, once it has."""
        self.unsupported: str | None = None
        """What the tests need and cannot have."""

    def receive(self) -> dict[str, Any]:
        """The next message of the program. Raises `Stop` if it has ended."""
        try:
            if self.ended:
                raise Closed(self.ended)
            message = receive(self._reader)
            if not isinstance(message, dict):
                raise Closed("a message is not a JSON object")
            return message
        except (Closed, OSError) as error:
            self.ended = f"the program has ended: {error}"
            raise Stop(self.ended) from None

    def exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a message and return the reply, after answering calls of functions that were passed as arguments."""
        try:
            if not self.ended:
                send(self._writer, message)
            while "function" in (reply := self.receive()):
                send(self._writer, self._answer(reply))
        except OSError as error:
            self.ended = f"the program has ended: {error}"
            raise Stop(self.ended) from None
        except NotPlain as error:
            raise self._cannot(error) from None
        if printed := reply.get("printed"):
            print(printed, end="")
        return reply

    def _cannot(self, error: NotPlain) -> Stop:
        self.unsupported = f"the tests pass what no program can receive: {error}"
        return Stop(self.unsupported)

    def _answer(self, call: dict[str, Any]) -> dict[str, Any]:
        """Call a function of the tests for the program."""
        try:
            args, kwargs = (decoded(part, self._decoder("known")) for part in call["arguments"])
            return {"value": encoded(self._functions[call["function"]](*args, **kwargs), self._encode)}
        except Exception as error:
            kind = next(base for base in type(error).__mro__ if base.__module__ == "builtins")
            return {"raised": [[kind.__name__], str(error)[:1000]]}

    def ask(self, operation: str, *args: Any, accept: str = "plain", **kwargs: Any) -> Any:
        """The value of an operation; `accept` is explained at `_decoder`. Raises what the program raised."""
        try:
            arguments = [encoded(list(args), self._encode), encoded(kwargs, self._encode)]
        except NotPlain as error:
            raise self._cannot(error) from None
        message: dict[str, Any] = {"do": operation, "arguments": arguments}
        if sys.stdin is not self.input:
            message["input"] = sys.stdin.read()
        reply = self.exchange(message)
        if "raised" in reply:
            raise self._exception(reply["raised"])
        try:
            value = decoded(reply.get("value"), self._decoder(accept))
        except NotPlain as error:
            raise TypeError(f"the program gave what is not a plain value: {error}") from None
        # What returns a value does not change its arguments, or it could change what the value is compared with.
        if value is None and operation == "call":
            for argument, data in zip(args[1:], reply.get("changed") or (), strict=False):
                _change(argument, data)
        return value

    def _exception(self, raised: Any) -> BaseException:
        """An exception of this interpreter: a built-in one, or one of a class that stands for the program's."""
        try:
            names, text = raised
            kind = self._exception_class(names)
            # These would end a loop of the tests as if it were complete.
            if not issubclass(kind, StopIteration | StopAsyncIteration | GeneratorExit):
                with contextlib.suppress(TypeError):
                    return kind(str(text))
                return kind.__new__(kind)  # UnicodeDecodeError needs more arguments
        except (NotPlain, TypeError, ValueError):
            pass
        return RuntimeError(f"the program raised {raised!r:.200}")

    def _encode(self, value: Any) -> Any:
        if isinstance(value, Reference | _Items):
            return ["object", value._number]
        if isinstance(value, collections.abc.Iterator):
            items = [item for item, _ in zip(value, range(_ITERATED), strict=False)]
            return ["iterator", encoded(items, self._encode)]
        if callable(value):
            self._functions.append(value)
            return ["function", len(self._functions) - 1]
        raise NotPlain(f"an object of the class {type(value).__qualname__}")

    def _decoder(self, accept: str) -> Callable[[list[Any]], Any]:
        """How to decode what is not plain: iterators, with their elements by the same rule, and objects by number.

        `accept` says which objects are an `Instance`: none if "plain", those that the tests already have if "known",
        all if "any". The others are a `Reference`.
        """

        def decode(data: list[Any]) -> Any:
            kind, number = data
            if type(number) is int and kind == "iterator":
                return _Items(self, number, accept)
            if type(number) is not int or kind != "object":
                raise NotPlain(f"a value of the kind {kind}")
            if accept == "any":
                return self._instances.setdefault(number, Instance(self, number))
            return (self._instances.get(number) if accept == "known" else None) or Reference(self, number)

        return decode

    def named(self, name: str) -> Any:
        """What the program has under a global name. Raises `KeyError` if it has nothing that tests can use."""

        def decode(data: list[Any]) -> Any:
            kind, content = data
            if kind == "object" and type(content) is int:
                return (Class if name[:1].isupper() else Reference)(self, content)
            if kind == "module" and name in _MODULE_NAMES:
                return importlib.import_module(_MODULE_NAMES[name])
            if kind == "exception":
                return self._exception_class(content)
            return self._decoder("plain")(data)

        reply = self.exchange({"do": "name", "arguments": [["list", [name]], ["dict", []]]})
        try:
            return decoded(reply["value"], decode)
        except (NotPlain, ImportError) as error:
            raise KeyError(name) from error

    def _exception_class(self, names: Any) -> type[BaseException]:
        """A class of this interpreter that stands for an exception of the program."""
        base = getattr(builtins, str(names[-1]), None) if isinstance(names, list) else None
        if not (isinstance(base, type) and issubclass(base, BaseException)):
            raise NotPlain("a class of exceptions without a built-in one")
        for name in reversed(names[:-1]):
            base = self._exceptions.setdefault(str(name), type(str(name), (base,), {}))
        return base


def _change(argument: Any, data: Any) -> None:
    """Give an argument the content that a function which returned None has given it."""
    kind = type(argument)
    try:
        value = decoded(data)
    except NotPlain:
        return
    if type(value) is not kind:
        return
    if kind in (dict, set):
        argument.clear()
        argument.update(value)
    elif kind in (list, bytearray) or (kind.__name__ == "ndarray" and argument.shape == value.shape):
        argument[:] = value


class Reference:
    """An object that stays in the program. It can be called and passed back; it equals only what has its number."""

    _accept = "plain"
    """How objects are decoded that its calls return."""

    def __init__(self, program: Program, number: int) -> None:
        self._program, self._number = program, number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reference) and other._number == self._number

    def __hash__(self) -> int:
        return hash(self._number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it in the program."""
        return self._program.ask("call", self, *args, accept=self._accept, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name not in ("__name__", "__doc__"):
            raise AttributeError(f"tests may only call what a program returns, not read its {name}")
        return self._program.ask("get", self, name)


class Class(Reference):
    """A class that stays in the program, as do its instances."""

    _accept = "any"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            return super().__getattr__(name)
        value = self._program.ask("get", self, name, accept="any")
        return Class(self._program, value._number) if isinstance(value, Instance) and name[:1].isupper() else value

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, Instance) and bool(self._program.ask("isinstance", instance, self))


class Instance(Class):
    """An instance of a program's class, or a method or attribute of one."""

    _accept = "known"

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("_program", "_number"):
            super().__setattr__(name, value)
        else:
            self._program.ask("set", self, name, value)

    def __len__(self) -> int:
        return self._program.ask("len", self)

    def __bool__(self) -> bool:
        return bool(self._program.ask("bool", self))

    def __str__(self) -> str:
        return self._program.ask("str", self)

    def __repr__(self) -> str:
        return self._program.ask("repr", self)

    def __iter__(self) -> Iterator[Any]:
        return self._program.ask("iter", self, accept="known")

    def __contains__(self, value: Any) -> bool:
        return bool(self._program.ask("contains", self, value))

    def __getitem__(self, key: Any) -> Any:
        return self._program.ask("getitem", self, key, accept="known")

    def __setitem__(self, key: Any, value: Any) -> None:
        self._program.ask("setitem", self, key, value)

    def __delitem__(self, key: Any) -> None:
        self._program.ask("delitem", self, key)

    def __enter__(self) -> Any:
        return self._program.ask("enter", self, accept="known")

    def __exit__(self, *error: object) -> None:
        self._program.ask("exit", self)


class _Items:
    """An iterator of the program, read in chunks that grow, since it may be endless."""

    def __init__(self, program: Program, number: int, accept: str) -> None:
        self._program, self._number, self._accept = program, number, accept
        self._read: collections.deque[Any] = collections.deque()
        self._size = 1

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if not self._read:
            self._read.extend(self._program.ask("next", self, self._size, accept=self._accept))
            self._size = min(2 * self._size, _CHUNK)
        if not self._read:
            raise StopIteration
        return self._read.popleft()


class _Names(dict[str, Any]):
    """The built-in names; one that is missing is looked up in the program, and a function then kept."""

    def __init__(self, program: Program) -> None:
        super().__init__(vars(builtins))
        self._program = program

    def __missing__(self, name: str) -> Any:
        if name.startswith("__"):
            raise KeyError(name)
        value = self._program.named(name)
        if isinstance(value, Reference):
            self[name] = value
        return value


def outcome(program_text: str, tests: str, *, reader: int, writer: int) -> dict[str, str]:
    """Run a program, then its tests. Returns {}, or the reason under "wrong" or "failure" (of ours).

    "ended" is there too if the program closed its pipe, as it does when it ends or is killed.
    """
    program = Program(reader, writer)
    program.input = sys.stdin = io.StringIO()
    try:
        try:
            begun = program.receive()
        except Stop as stop:
            return {"failure": str(stop)}
        if "failure" in begun:
            return {"failure": begun["failure"]}
        reply = program.exchange({"program": program_text})
        if "raised" in reply:
            return {"wrong": f"the program raised {reply['raised']!r:.300}"}
        exec(compile(tests, "<tests>", "exec"), {"__name__": "__tests__", "__builtins__": _Names(program)})
        wrong = ""
    except BaseException as error:
        wrong = f"{type(error).__name__}: {error}"
    if program.unsupported:
        return {"failure": program.unsupported}
    if program.ended:
        return {"wrong": program.ended, "ended": program.ended}
    return {"wrong": wrong} if wrong else {}
