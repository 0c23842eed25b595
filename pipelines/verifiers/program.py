"""The side of the program: runs it, then does what the tests ask with its functions and sends back plain values.

Nothing here is trusted by the tests: a program can change everything in its interpreter, and gains only that other
values are sent. The tests, and what they expect, never enter this process.

The first message is {"program": text}; after it the program has run, or has raised. Each further request names an
operation of `_OPERATIONS` and its arguments. A reply is {"value": ...} or {"raised": [names of classes, text]};
"printed" is what the program printed since the last one. A function that returns None, as functions that change their
arguments do, sends its arguments back as "changed". Where the program calls a function of the tests, it sends
{"function": number, "arguments": ...} instead, and answers requests until the reply comes.
"""

import builtins
import collections.abc
import io
import itertools
import operator
import os
import sys
import types
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from pipelines.verifiers.plain_values import Closed, NotPlain, decoded, encoded, receive, send

PRINTED = 1 << 20
"""Characters of output that are sent on; the rest is lost."""


def _next(iterator: Iterator[Any], count: int) -> list[Any]:
    return list(itertools.islice(iterator, count))


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, *args, **kwargs: function(*args, **kwargs),
    "get": getattr, "set": setattr, "len": len, "str": str, "repr": repr, "bool": bool, "iter": iter, "next": _next,
    "getitem": operator.getitem, "setitem": operator.setitem, "delitem": operator.delitem,
    "contains": operator.contains, "isinstance": isinstance, "enter": lambda value: value.__enter__(),
    "exit": lambda value: value.__exit__(None, None, None),
}  # fmt: skip


class _Program:
    """The program's names, and the objects of it that the tests know by number."""

    def __init__(self, reader: int, writer: int) -> None:
        self.reader, self.writer = reader, writer
        module = sys.modules["__program__"] = types.ModuleType("__program__")  # dataclasses look for it
        self.names = vars(module)
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}
        self.output = sys.stdout = io.StringIO()

    def number(self, value: Any) -> int:
        """The number of an object; the same object has the same one."""
        number = self.numbers.setdefault(id(value), len(self.objects))
        if number == len(self.objects):
            self.objects.append(value)
        return number

    def encode(self, value: Any) -> Any:
        """Encode what is not plain: by its number, or by its name."""
        if isinstance(value, types.ModuleType):
            return ["module", value.__name__]
        if isinstance(value, type) and issubclass(value, BaseException):
            return ["exception", _class_names(value)]
        if isinstance(value, collections.abc.Iterator):
            return ["iterator", self.number(value)]
        return ["object", self.number(value)]

    def decode(self, data: list[Any]) -> Any:
        """Decode what is not plain: an object of the program, or a function or iterator of the tests."""
        kind, content = data
        if kind == "object":
            return self.objects[content]
        if kind == "iterator":
            return iter(decoded(content))
        return lambda *args, **kwargs: self.call_back(content, args, kwargs)

    def call_back(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function that the tests have passed as an argument, and answer what it asks meanwhile."""
        content = [encoded(list(args), self.encode), encoded(kwargs, self.encode)]
        send(self.writer, {"function": number, "arguments": content})
        while "do" in (reply := receive(self.reader)):
            self.reply(partial(self.answer, reply))
        if "raised" in reply:
            raise getattr(builtins, reply["raised"][0][0])(reply["raised"][1])
        return decoded(reply["value"], self.decode)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a request says."""
        arguments, named = (decoded(part, self.decode) for part in request["arguments"])
        if request.get("input") is not None:
            sys.stdin = io.StringIO(request["input"])
        if request["do"] == "name":
            return {"value": encoded(self.names[arguments[0]], self.encode)}
        value = _OPERATIONS[request["do"]](*arguments, **named)
        reply = {"value": encoded(value, self.encode)}
        if value is None and request["do"] == "call":
            reply["changed"] = [_encoded_or_none(argument) for argument in arguments[1:]]
        return reply

    def reply(self, work: Callable[[], dict[str, Any]]) -> None:
        """Send what `work` returns or raises, with what was printed."""
        try:
            reply = work()
        except Closed:
            os._exit(0)
        except BaseException as error:
            text = error.args[0] if len(error.args) == 1 and type(error.args[0]) is str else str(error)
            reply = {"raised": [_class_names(type(error)), text[:1000]]}
        if printed := self.output.getvalue()[:PRINTED]:
            reply["printed"] = printed
            self.output.seek(0)
            self.output.truncate()
        try:
            send(self.writer, reply)
        except NotPlain as error:
            send(self.writer, {"raised": [["NotPlain"], str(error)]})

    def run(self, text: str) -> dict[str, Any]:
        """Run the program."""
        exec(compile(text, "<program>", "exec"), self.names)
        return {"value": None}


def _encoded_or_none(value: Any) -> Any:
    try:
        return encoded(value)
    except NotPlain:
        return None


def _class_names(kind: type) -> list[str]:
    """The names of an exception's class and of those that it is derived from, up to the first that is built in."""
    names = []
    for base in kind.__mro__:
        names.append(base.__qualname__)
        if base.__module__ == "builtins":
            break
    return names


def serve(reader: int, writer: int) -> None:
    """Run the program that comes through `reader`, and answer requests until the pipe closes."""
    send(writer, {"value": None})  # this process is confined
    program = _Program(reader, writer)
    text = receive(reader)["program"]
    program.reply(lambda: program.run(text))
    while True:
        request = receive(reader)
        program.reply(lambda: program.answer(request))  # noqa: B023 - called at once
