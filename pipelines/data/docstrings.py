"""The text of the corpus: docstrings of installed packages."""

import ast
import importlib.util
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.tasks.families import split_of

SHORTEST_DOCUMENT = 200
"""Docstrings of fewer characters are left out: they say too little to learn from."""


@dataclass(frozen=True)
class Document:
    """A docstring and the name of its module."""

    module: str
    text: str

    @property
    def training_text(self) -> str:
        """The docstring under a heading with the name of its module."""
        return f"# {self.module}\n{self.text}"

    @property
    def split(self) -> str:
        """The split of the text. RL asks no documents, so its share of them is trained on too."""
        split = split_of(self.text)
        return "train" if split == "rl" else split


def docstrings(package: str) -> list[Document]:
    """Returns the distinct docstrings of a package's modules, classes and functions; the package is not imported."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    origin = Path(spec.origin)
    # Only the names below the package count: where it is installed changes nothing. A module is a single file, next to
    # which other packages are installed.
    root = origin.parent if spec.submodule_search_locations else origin
    files = sorted(root.rglob("*.py")) if spec.submodule_search_locations else [origin]
    documents: dict[str, Document] = {}  # by text: the first module that has it
    for path in files:
        if "tests" in path.relative_to(root).parts:
            continue
        # PACKAGE/sub/__init__.py -> PACKAGE.sub
        module = ".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__")
        for node in _outside_expressions(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                if len(text) >= SHORTEST_DOCUMENT:
                    documents.setdefault(text, Document(module, text))
    return list(documents.values())


def _outside_expressions(tree: ast.AST) -> Iterator[ast.AST]:
    """`ast.walk` without entering expressions, which are most of a file and contain no definitions."""
    queue = deque([tree])
    while queue:
        node = queue.popleft()
        yield node
        queue.extend(child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr))
