"""Draw docs/images/objective.png: what each knob does to a distribution, from `stationary_distribution`.

The data distribution falls as rank^-1.5 over 1,000 tokens; each line is what a tabular model trained on it ends at.
Run from the root of the repository: python docs/objective_picture.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

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
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), sharey=True, layout="constrained")
    print(f"{'cross-entropy':42} entropy {entropy(q.log()).item():.3f}")
    for axis, (title, objectives) in zip(axes, PANELS.items(), strict=True):
        axis.axhline(1.0, color="black", linewidth=0.8, label="cross-entropy")
        for objective in objectives:
            p = stationary_distribution(q, objective)
            match = effective_temperature(q, p)
            print(
                f"{objective!r:42} entropy {entropy(p.log()).item():.3f}  temperature {match.temperature.item():.3f}  "
                f"left over {match.divergence.item():.4f}"
            )
            knob = {"beta": objective.beta, "lam_tail": objective.lam_tail, "lam_head": objective.lam_head}
            axis.plot(rank, p / q, label=f"{knob[title.split(',')[0]]:+g}")
        axis.set(xscale="log", ylim=(0.65, 1.3), title=title, xlabel="rank of the token in the data")
        axis.legend(fontsize=8, loc="lower right" if title == "beta" else "lower left")
    axes[0].set_ylabel("probability, model / data")
    path = Path(__file__).parent / "images" / "objective.png"
    figure.savefig(path, dpi=110)
    print(path)


if __name__ == "__main__":
    main()
