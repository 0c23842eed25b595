"""Small changes of the code that a test should notice, made by the operators of mutmut.

Numbers, operators, comparisons, conditions, arguments and assignments are changed. Texts are not (most are messages),
nor annotations, docstrings, decorators and what a module imports.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators, operator_string

OPERATORS = [(kind, operator) for kind, operator in mutation_operators if operator is not operator_string]
NOT_CALLS = {"super", "cast", "TypeVar", "getLogger", "field", "debug", "info", "warning"}
"""Calls whose arguments are types, log messages or declarations."""

NOT_ARGUMENTS = {"device", "strict", "encoding", "help", "name"}
"""Arguments without effect on a CPU, on correct data, or on a number."""


@dataclass(frozen=True)
class Mutation:
    """One changed file: the lines that differ, and the text of the whole file."""

    path: str
    line: int
    before: str
    after: str
    text: str

    @property
    def key(self) -> str:
        """How a list of equivalent mutations names it, independent of line numbers."""
        return f"{self.path}: {self.before} => {self.after}"


@dataclass(frozen=True)
class Candidate:
    """A place and an operator; `mutation` makes the text, which takes longer than finding the place."""

    path: str
    line: int
    module: cst.Module
    node: cst.CSTNode
    replacement: cst.CSTNode

    def mutation(self) -> Mutation:
        """The change as text."""
        changed = self.module.deep_replace(self.node, self.replacement)
        assert isinstance(changed, cst.Module)
        before, after = self.module.code.splitlines(), changed.code.splitlines()
        first = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), len(after) - 1)
        return Mutation(self.path, first + 1, before[first].strip(), after[first].strip(), changed.code)


def candidates(root: Path, path: str) -> list[Candidate]:
    """Every mutation of the file `path` under `root`, in the order of its lines."""
    wrapper = MetadataWrapper(cst.parse_module((root / path).read_text()))
    visitor = _Places(path, wrapper.module)
    wrapper.visit(visitor)
    return visitor.found


class _Places(cst.CSTVisitor):
    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self, path: str, module: cst.Module) -> None:
        super().__init__()
        self.path, self.module = path, module
        self.found: list[Candidate] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        if _is_left_alone(node):
            return False
        line = self.get_metadata(PositionProvider, node).start.line
        for replacement in _replacements(node):
            if not _is_equivalent(node, replacement):
                self.found.append(Candidate(self.path, line, self.module, node, replacement))
        return True


def _replacements(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    for kind, operator in OPERATORS:
        if isinstance(node, kind):
            yield from operator(node)


def _is_equivalent(node: cst.CSTNode, replacement: cst.CSTNode) -> bool:
    """Whether the change is one of those that never matter: the sign of a dimension, the device on a CPU."""
    if isinstance(node, cst.UnaryOperation):
        return isinstance(node.expression, cst.Integer)
    if isinstance(node, cst.Call) and isinstance(replacement, cst.Call):
        changed = [argument for argument in node.args if argument not in replacement.args]
        return all(argument.keyword is not None and argument.keyword.value in NOT_ARGUMENTS for argument in changed)
    return False


def _is_left_alone(node: cst.CSTNode) -> bool:
    if isinstance(node, cst.Annotation | cst.Decorator | cst.Import | cst.ImportFrom | cst.Raise | cst.FormattedString):
        return True
    if isinstance(node, cst.Call):
        name = node.func.attr if isinstance(node.func, cst.Attribute) else node.func
        return isinstance(name, cst.Name) and name.value in NOT_CALLS
    if isinstance(node, cst.If):
        return isinstance(node.test, cst.Name) and node.test.value == "TYPE_CHECKING"
    return False
