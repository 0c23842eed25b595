"""The graph of stage runs: each has a signature, and cells that need the same one share it.

Labels, paths, tracking, launcher and the number of workers are in no signature (`sweeps.plan.signatures`).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pipelines.published import FORMAT


@dataclass(frozen=True)
class StageRun:
    """One stage with one configuration on one parent."""

    stage: str
    signature: str
    version: int
    config: dict[str, Any]
    parent: tuple[str, str] | None
    """(stage, signature) of the stage run it starts from."""
    checkpoint: str | None
    """The parent's checkpoint that is read, such as `step-000128`."""
    steps: int
    """Steps that progress is counted in: optimizer steps, or benchmarks of `evaluate`."""
    labels: dict[str, Any] = field(compare=False)
    """Names for people: model, objective, seed, scale, sweep, tokens; not in the signature."""
    compute: dict[str, Any] = field(default_factory=dict, compare=False)
    """How it is computed (`ComputeConfig`), the folder of its token shards and the paths of its local files (`files`);
    not in the signature."""

    @property
    def control(self) -> str | None:
        """`matched:KNOBS` or `theory:KNOBS` of an evaluation, `tempered:KNOBS` of RL, that changes its distribution.

        It names the other objective by its knobs, since it is in the signature; `labels["control"]` has its label.
        """
        name = self.config.get("variant", {}).get("name")
        return name and str(name)

    @property
    def reference(self) -> str | None:
        """Signature of the stage run whose checkpoint a control is matched to; None for other stage runs."""
        reference = self.config.get("variant", {}).get("reference")
        return reference and str(reference["signature"])

    @property
    def needs(self) -> list[str]:
        """Signatures of the stage runs that must be done before this one: its parent, and a control's reference."""
        return [signature for signature in (self.parent and self.parent[1], self.reference) if signature]

    @property
    def spec(self) -> dict[str, Any]:
        """The content of `spec.json`, without the environment."""
        return {
            "format": FORMAT,
            "stage": self.stage,
            "version": self.version,
            "signature": self.signature,
            "config": self.config,
            "parent": self.parent and {"stage": self.parent[0], "signature": self.parent[1]},
            "checkpoint": self.checkpoint,
            "labels": self.labels,
            "compute": self.compute,
        }


@dataclass
class Plan:
    """Stage runs by signature, parents before children, and the stage runs of each cell."""

    runs: dict[str, StageRun] = field(default_factory=dict)
    cells: dict[str, list[str]] = field(default_factory=dict)
    """Cell's name -> signatures of its stage runs."""
    _children: dict[str, list[StageRun]] = field(default_factory=dict, repr=False)

    def add(self, run: StageRun) -> None:
        """Add `run` to the graph; has no effect if it was added before."""
        if run.signature not in self.runs:
            self.runs[run.signature] = run
            for signature in run.needs:
                self._children.setdefault(signature, []).append(run)

    def children(self, signature: str) -> list[StageRun]:
        """Returns the stage runs that need `signature` directly: they start from it, or are matched to it."""
        return self._children.get(signature, [])

    def descendants(self, signature: str) -> list[StageRun]:
        """Returns the stage runs that need `signature`, directly or through others."""
        runs: dict[str, StageRun] = {}
        for child in self.children(signature):
            runs |= {run.signature: run for run in (child, *self.descendants(child.signature))}
        return list(runs.values())

    def part(self, signatures: Iterable[str]) -> "Plan":
        """Returns the graph of some stage runs and all that they need; each cell keeps its own among them."""
        # All signatures that are needed, directly or through others.
        needed: set[str] = set()
        waiting = list(signatures)
        while waiting:
            signature = waiting.pop()
            if signature not in needed:
                needed.add(signature)
                waiting += self.runs[signature].needs
        # In the order of this graph, so that parents still come first.
        graph = Plan()
        for signature, run in self.runs.items():
            if signature in needed:
                graph.add(run)
        for name, chain in self.cells.items():
            if cell_signatures := [signature for signature in chain if signature in needed]:
                graph.cells[name] = cell_signatures
        return graph
