"""Loads plugins: the modules that `plugins.yaml` of one's own folder names, and entry points of installed packages.

Modules are looked for in the folder first. What a plugin registers carries the hash of its code, that of the modules
of the folder which it imports included, so a changed reward has another signature. A worker loads the same modules and
refuses code that has changed since its stage run was planned.

Entry points: `shaping.verifiers` and `shaping.tasks` name modules that register; `shaping.engines` and
`shaping.trackers` name classes (`module:Class`), which are imported only where they are used.
"""

import ast
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import yaml

from pipelines.configuration.grpo import ENGINES
from pipelines.configuration.tracking import OTHER_TRACKERS
from pipelines.errors import StageFailure, UserError
from pipelines.files import sha256, sha256_of
from pipelines.plugins.checks import check_registered
from pipelines.plugins.registration import Loading, loading, unregister
from pipelines.processes import time_limit

PLUGIN_FILE = "plugins.yaml"
"""The file of one's own folder that lists its plugins."""
IMPORT_SECONDS = 60
"""Limit on the time in which a plugin is imported."""
REGISTERING = ("shaping.verifiers", "shaping.tasks")
"""Groups of entry points whose modules register."""
NAMING: dict[str, dict[str, str]] = {"shaping.engines": ENGINES, "shaping.trackers": OTHER_TRACKERS}
"""Groups of entry points that name classes -> the registry of these."""


class _Loaded:
    """The plugins of this process."""

    folder: str | None = None
    sources: dict[str, str] = {}  # noqa: RUF012
    """Module of the folder -> hash of its code."""
    registrations: list[Loading] = []  # noqa: RUF012
    stamp: Any = None
    """What the folder's plugins were when they were loaded."""
    installed = False
    """Whether entry points were loaded."""


def use_plugins(folder: str | None) -> None:
    """Load the entry points and the plugins of one's own folder, unless these are loaded already.

    Raises `UserError` for a plugin that cannot be loaded, naming the file, the plugin and the way out.
    """
    _load_installed()
    stamp = _stamp(folder)
    if stamp != _Loaded.stamp:
        load_folder(folder, _listed(folder))
        _Loaded.stamp = _stamp(folder)


def planned_plugins() -> dict[str, Any]:
    """Returns the folder's plugins as a spec has them, for workers: their folder and the hash of each; {} without."""
    return {"folder": _Loaded.folder, "modules": dict(_Loaded.sources)} if _Loaded.sources else {}


def load_planned(planned: Mapping[str, Any]) -> None:
    """Load the plugins of a spec in a worker. Raises `StageFailure` if their code has changed since it was planned."""
    _load_installed()
    if planned == planned_plugins():
        return
    folder, modules = planned.get("folder"), planned.get("modules", {})
    for name, source in modules.items():
        key, path = f"plugins=[{name}]", _file_of(folder, name)
        if (_source(Path(str(folder)), path) if path else _installed_source(name, key)) != source:
            raise StageFailure(
                f"{key}: {path or name} has changed since this stage run was planned; launch it again to plan it with "
                "the current code"
            )
    load_folder(folder, list(modules))
    _Loaded.stamp = _stamp(folder)


def load_folder(folder: str | None, modules: Sequence[str]) -> None:
    """Import the modules of a folder as plugins, in place of those that were loaded before."""
    for registration in _Loaded.registrations:
        unregister(registration)
    # Another folder may have modules of the same names.
    for name, module in list(sys.modules.items()):
        if _Loaded.folder and str(getattr(module, "__file__", None) or "").startswith(_Loaded.folder + os.sep):
            del sys.modules[name]
    if _Loaded.folder in sys.path:
        sys.path.remove(_Loaded.folder)
    _Loaded.registrations, _Loaded.sources, _Loaded.folder, _Loaded.stamp = [], {}, None, None
    if not modules:
        return
    assert folder is not None
    importlib.invalidate_caches()
    sys.path.append(folder)  # at the end: a folder `data` of it hides no package
    _Loaded.folder = folder
    for name in modules:
        key = f"plugins=[{name}] in {folder}/{PLUGIN_FILE}"
        path = _file_of(folder, name)
        if path is None:
            _Loaded.sources[name] = _installed_source(name, key)
        else:
            _Loaded.sources[name] = _source(Path(folder), path)
        _load(name, key, _Loaded.sources[name], path=path)
    check_registered(_Loaded.registrations)


def _load(name: str, key: str, source: str, *, path: Path | None) -> None:
    """Import a module as a plugin. Raises `UserError` for whatever it raises."""
    way_out = f"mend it, or leave it out of {PLUGIN_FILE}" if path else "mend it, or uninstall its package"
    with loading(key, source) as registration:
        _Loaded.registrations.append(registration)
        try:
            with time_limit(IMPORT_SECONDS):
                module = importlib.import_module(name)
        except KeyboardInterrupt:
            raise
        except UserError as error:
            raise error if str(error).startswith(key) else UserError(f"{key}: {error}") from error
        except TimeoutError as error:
            raise UserError(f"{key}: importing it takes more than {IMPORT_SECONDS} s; {way_out}") from error
        except BaseException as error:
            line = traceback.extract_tb(error.__traceback__)[-1]
            reason = " ".join(str(error).split())
            position = f"{line.filename}:{line.lineno}"
            if isinstance(error, SyntaxError) and error.filename:
                position, reason = f"{error.filename}:{error.lineno}", str(error.msg)
            raise UserError(f"{key}: {position}: {type(error).__name__}: {reason}; {way_out}") from error
    found = getattr(module, "__file__", None)
    if path is not None and Path(str(found)).resolve() != path.resolve():
        raise UserError(f"{key}: {found} has the same name and is imported in its place; rename {path.name}")
    if not registration.registered:
        raise UserError(f"{key}: it registers nothing; use the decorators of pipelines.plugins in it, or leave it out")


def _listed(folder: str | None) -> list[str]:
    """The modules that the folder's `plugins.yaml` names; none without the file."""
    path = Path(folder or os.devnull) / PLUGIN_FILE
    if folder is None or not path.is_file():
        return []
    try:
        content = yaml.safe_load(path.read_text("utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: it cannot be read ({' '.join(str(error).split())}); write plugins: [NAME]") from error
    names = content.get("plugins") if isinstance(content, dict) else None
    if not isinstance(content, dict) or set(content) - {"plugins"} or not isinstance(names or [], list):
        raise UserError(f"{path}: it has one key, a list of modules; write plugins: [NAME]")
    for name in names or []:
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
            fix = "a plugin is the name of a module: that of its file, without .py"
            raise UserError(f"plugins=[{name}] in {path}: {fix}")
    if repeated := next((name for name in names or [] if (names or []).count(name) > 1), None):
        raise UserError(f"plugins=[{repeated}] in {path}: it is listed twice; leave one out")
    return list(names or [])


def _file_of(folder: str | None, name: str) -> Path | None:
    """The file of a module in the folder, or None."""
    base = Path(folder or os.devnull).joinpath(*name.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def _stamp(folder: str | None) -> Any:
    """Changes when `plugins.yaml` or a Python file of the folder does; None without plugins."""
    path = Path(folder or os.devnull) / PLUGIN_FILE
    if folder is None or not path.is_file():
        return None
    files = [path, *sorted(Path(folder).glob("*.py")), *sorted(Path(folder).glob("*/*.py"))]
    return folder, [(str(file), (status := file.stat()).st_mtime_ns, status.st_size) for file in files]


def _source(folder: Path, path: Path) -> str:
    """The hash of a module of the folder and of all modules of the folder that it imports."""
    return sha256_of({name: sha256(file) for name, file in sorted(_imported(folder, path).items())})[:16]


def _imported(folder: Path, path: Path) -> dict[str, Path]:
    """Path in the folder -> file, of a module and of what it imports from the folder, directly or not."""
    found: dict[str, Path] = {}
    waiting = [path]
    while waiting:
        file = waiting.pop()
        # Of a package every file counts.
        files = sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]
        for each in files:
            if (name := str(each.relative_to(folder))) in found:
                continue
            found[name] = each
            waiting += [match for word in _imports(each) if (match := _file_of(str(folder), word))]
    return found


def _imports(path: Path) -> Iterator[str]:
    """The names of the modules that a file imports; none of a file that is no Python, which importing it tells."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _installed_source(name: str, key: str) -> str:
    """The hash of an installed module's file."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        folder, _, file = key.rpartition(" in ")[2].rpartition("/")
        fix = f"there is neither {folder}/{name}.py nor an installed module {name}; name one, or leave it out of {file}"
        raise UserError(f"{key}: {fix}")
    return sha256(spec.origin)[:16]


def _load_installed() -> None:
    """Load the entry points of installed packages, once for a process."""
    if _Loaded.installed:
        return
    points = entry_points()
    for group, registry in NAMING.items():
        for point in points.select(group=group):
            if registry.setdefault(point.name, point.value) != point.value:
                raise UserError(f"{_key(point)}: the name {point.name} is taken; {_way_out(point)}")
    # Several entry points may name one module.
    modules = {point.module: point for group in REGISTERING for point in points.select(group=group)}
    for module, point in modules.items():
        source = _installed_source(module, _key(point))
        _load(module, _key(point), f"{_version(point)} {source}", path=None)
    check_registered(_Loaded.registrations)
    _Loaded.registrations = []  # they stay whatever folder is loaded
    _Loaded.installed = True


def _key(point: EntryPoint) -> str:
    return f"entry point {point.group}:{point.name}={point.value}"


def _way_out(point: EntryPoint) -> str:
    return f"uninstall {point.dist.name if point.dist else point.module}, or rename it there"


def _version(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.module
