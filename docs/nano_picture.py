"""Draws docs/images/nano.png from a store: perplexity and entropy over pre-training, and reward over RL.

python docs/nano_picture.py [STORE]
"""

import sys
from dataclasses import replace
from pathlib import Path

from analysis.figures.all_figures import build_figures
from analysis.figures.charts import panel_specs
from analysis.figures.vega_lite import draw
from analysis.study import read_study
from sweeps.compose.cells import compose_cells
from sweeps.plan.planner import plan
from sweeps.store.stage_runs import Store

PANELS = ("perplexity", "entropy (nats)", "reward", "held-out reward (percent)")
FIGURES = ("pretraining-nano", "pretraining-nano", "rl-nano", "rl-nano")


def main() -> None:
    """Draw the picture."""
    study = read_study(plan(compose_cells(["+sweep=nano"])), Store.open(sys.argv[1] if sys.argv[1:] else "store"))
    figures = {chart.name: chart for chart in build_figures(study).charts}
    panels = [
        next(panel for panel in figures[name].panels if panel["title"] == title)
        for name, title in zip(FIGURES, PANELS, strict=True)
    ]
    small = tuple({**panel, "width": 190, "height": 170} for panel in panels)
    picture = draw("nano", panel_specs(replace(figures["rl-nano"], panels=small)))
    (Path(__file__).parent / "images" / "nano.png").write_bytes(picture.png)


if __name__ == "__main__":
    main()
