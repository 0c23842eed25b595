"""Draw docs/images/objective.svg: what each knob does to a distribution, from `stationary_distribution`.

The data distribution falls as rank^-1.5 over 1,000 tokens; each line is what a tabular model of it converges to.
Run from the root of the repository: python docs/objective_picture.py
"""

from pathlib import Path
from typing import Any

import pandas as pd
import torch

from analysis.figures.charts import Chart, panel_specs
from analysis.figures.vega_lite import Spec, draw
from shaping import Objective, effective_temperature, entropy, stationary_distribution

PANELS = {
    "beta": [Objective(beta=beta) for beta in (-0.5, -0.25, 0.5, 1.0)],
    "lam_tail, top_k = 100": [Objective(lam_tail=lam) for lam in (-0.3, -0.1, 0.1)],
    "lam_head, top_k = 100": [Objective(lam_head=lam) for lam in (-0.1, 0.1, 0.3)],
}


def quantity(field: str, title: str, **scale: Any) -> Spec:
    """The encoding of an axis."""
    return {"field": field, "type": "quantitative", "title": title, "scale": scale}


def main() -> None:
    """Print entropies and temperatures of the fixed points, and draw them."""
    rank = torch.arange(1, 1001, dtype=torch.float64)
    q = rank**-1.5 / (rank**-1.5).sum()
    print(f"{'cross-entropy':24} entropy {entropy(q.log()).item():.3f}")
    panels = []
    for title, objectives in PANELS.items():
        lines = {"cross-entropy": torch.ones_like(q)}
        for objective in objectives:
            p = stationary_distribution(q, objective)
            match = effective_temperature(q, p)
            print(
                f"{objective!s:24} entropy {entropy(p.log()).item():.3f}  temperature {match.temperature.item():.3f}  "
                f"divergence {match.divergence.item():.4f}"
            )
            knob = {"beta": objective.beta, "lam_tail": objective.lam_tail, "lam_head": objective.lam_head}
            lines[f"{knob[title.split(',')[0]]:+g}"] = p / q
        rows = [
            {"rank": position, "ratio": line[position - 1].item(), "value": name}
            for name, line in lines.items()
            for position in (*range(1, 121), *range(125, 1001, 25))  # every rank of the head, fewer after it
        ]
        # One panel per knob.
        encoding = {
            "x": quantity("rank", "rank of the token in the data", type="log"),
            "y": quantity("ratio", "probability, model / data", domain=[0.65, 1.3]),
            "color": {"field": "value", "type": "nominal", "sort": list(lines), "title": None},
        }
        panels.append({"title": title, "data": {"values": rows}, "mark": "line", "encoding": encoding})
    path = Path(__file__).parent / "images" / "objective.svg"
    path.write_text(draw("objective", panel_specs(Chart("objective", None, "", "", tuple(panels), pd.DataFrame()))).svg)
    print(path)


if __name__ == "__main__":
    main()
