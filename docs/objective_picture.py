"""Draw docs/images/objective.png: what each knob does to a distribution, from `stationary_distribution`.

The data distribution falls as rank^-1.5 over 1,000 tokens; each line is what a tabular model trained on it ends at.
Run from the root of the repository: python docs/objective_picture.py
"""

from pathlib import Path

import torch

from analysis.figures import CONFIG
from analysis.vega import SCHEMA, png, svg
from shaping import Objective, effective_temperature, entropy, stationary_distribution

PANELS = {
    "beta": [Objective(beta=beta) for beta in (-0.5, -0.25, 0.5, 1.0)],
    "lam_tail, top_k = 100": [Objective(lam_tail=lam) for lam in (-0.3, -0.1, 0.1)],
    "lam_head, top_k = 100": [Objective(lam_head=lam) for lam in (-0.1, 0.1, 0.3)],
}


def main() -> None:
    """Solve, print entropies and temperatures, draw."""
    rank = torch.arange(1, 1001, dtype=torch.float64)
    q = rank**-1.5 / (rank**-1.5).sum()
    print(f"{'cross-entropy':42} entropy {entropy(q.log()).item():.3f}")
    panels = []
    for title, objectives in PANELS.items():
        lines = {"0": torch.ones_like(q)}
        for objective in objectives:
            p = stationary_distribution(q, objective)
            match = effective_temperature(q, p)
            print(
                f"{objective!r:42} entropy {entropy(p.log()).item():.3f}  temperature {match.temperature.item():.3f}  "
                f"left over {match.divergence.item():.4f}"
            )
            knob = {"beta": objective.beta, "lam_tail": objective.lam_tail, "lam_head": objective.lam_head}
            lines[f"{knob[title.split(',')[0]]:+g}"] = p / q
        rows = [
            {"rank": r, "ratio": v, "value": name}
            for name, line in lines.items()
            for r, v in zip(rank.tolist(), line.tolist(), strict=True)
        ]
        x = {
            "field": "rank",
            "type": "quantitative",
            "scale": {"type": "log"},
            "title": "rank of the token in the data",
        }
        y = {
            "field": "ratio",
            "type": "quantitative",
            "scale": {"domain": [0.65, 1.3]},
            "title": "probability, model / data",
        }
        colour = {"field": "value", "type": "nominal", "sort": list(lines), "title": None}
        encoding = {"x": x, "y": y, "color": colour}
        mark = {"type": "line", "clip": True}
        panels.append(
            {"title": title, "width": 260, "height": 200, "data": {"values": rows}, "mark": mark, "encoding": encoding}
        )
    spec = {"$schema": SCHEMA, "config": {**CONFIG, "background": "white", "font": "sans-serif"}, "padding": 8,
            "hconcat": panels, "resolve": {"scale": {"color": "independent"}}}  # fmt: skip
    path = Path(__file__).parent / "images" / "objective.png"
    path.write_bytes(png(svg(spec)))
    print(path)


if __name__ == "__main__":
    main()
