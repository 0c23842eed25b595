"""Every example runs offline, and its loss falls well below that of a uniform prediction."""

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {
        "plain_loop",
        "hugging_face_trainer",
        "trl_sft",
        "lightning_module",
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "uniform_loss"),
    [("plain_loop", 5.55), ("hugging_face_trainer", 5.55), ("trl_sft", 2.64), ("lightning_module", 5.55)],
)
def test_the_loss_falls(name: str, uniform_loss: float, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    losses = [float(x) for x in re.findall(r"\bloss['\"]?:? ['\"]?(\d+\.\d+)", capsys.readouterr().out)]
    assert losses
    assert losses[-1] < 0.8 * uniform_loss
