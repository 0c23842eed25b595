"""Charts as files: each as SVG and as PNG, drawn again only where something of it has changed."""

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Sequence
from pathlib import Path

from analysis.figures import CONFIG, SCHEMA, VERSION, Chart, Spec

DRAWN = "drawn.json"
"""Beside the figures: what each was drawn from and by, and what came of it, as one digest."""


def draw(charts: Sequence[Chart], folder: Path, before: Path) -> None:
    """Write every chart to `folder` as NAME.svg and NAME.png, and `DRAWN`.

    What `before`, an earlier folder of this kind, holds of the same description and unchanged since is taken from
    there: drawing is half of what a small study's results cost. Raises `OSError` where `folder` cannot be written.
    """
    known = _known(before)
    by = importlib.metadata.version("vl-convert-python")
    drawn = {}
    for chart in charts:
        name = "".join(c if c.isalnum() or c in "-._" else "_" for c in chart.name)
        spec = static_spec(chart)
        files = _taken(before, name)
        if files is None or known.get(name) != _digest(by, spec, *files):
            text = svg(spec)
            files = text.encode(), png(text)
        (folder / f"{name}.svg").write_bytes(files[0])
        (folder / f"{name}.png").write_bytes(files[1])
        drawn[name] = _digest(by, spec, *files)
    (folder / DRAWN).write_text(json.dumps(drawn, indent=1) + "\n")


def _known(folder: Path) -> dict[str, str]:
    try:
        found = json.loads((folder / DRAWN).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _taken(before: Path, name: str) -> tuple[bytes, bytes] | None:
    try:
        return (before / f"{name}.svg").read_bytes(), (before / f"{name}.png").read_bytes()
    except OSError:
        return None


def _digest(by: str, spec: Spec, *files: bytes) -> str:
    found = hashlib.sha256(f"{by} {VERSION} {json.dumps(spec)}".encode())
    for content in files:
        found.update(hashlib.sha256(content).digest())
    return found.hexdigest()


def static_spec(chart: Chart) -> Spec:
    """The panels in a row for a file, on white."""
    panels = [{"width": 260, "height": 200, **panel} for panel in chart.panels]
    config = {**CONFIG, "background": "white", "font": "sans-serif"}
    return {"$schema": SCHEMA, "config": config, "padding": 8, "concat": panels, "columns": 3,
            "resolve": {"scale": {"color": "independent"}}}  # fmt: skip


def svg(spec: Spec) -> str:
    """A description in Vega-Lite as SVG text."""
    import vl_convert

    text: str = vl_convert.vegalite_to_svg(spec, vl_version=VERSION)
    # Vega numbers gradients and clips over the life of the process; here they are numbered from 0 in each figure.
    names: dict[str, str] = {}
    return re.sub(r"\b(gradient_|clip)(\d+)\b", lambda m: names.setdefault(m[0], f"{m[1]}{len(names)}"), text)


def png(drawn: str) -> bytes:
    """An SVG as PNG, twice as large."""
    import vl_convert

    image: bytes = vl_convert.svg_to_png(drawn, scale=2)
    return image
