"""What a worker records of its machine."""

import platform
from pathlib import Path

import pytest

from sweeps.execute.worker import package_versions, processor


@pytest.mark.parametrize(
    ("description", "model"),
    [
        (
            "processor\t: 0\nmodel\t\t: 85\nmodel name\t: Some CPU @ 2.10GHz \n\nmodel name\t: Other\n",
            " (Some CPU @ 2.10GHz)",
        ),
        ("processor\t: 0\nCPU implementer\t: 0x41\n", ""),
        (None, ""),
    ],
)
def test_the_processor_is_named_as_far_as_the_kernel_tells(description: str | None, model: str, tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    if description is not None:
        file.write_text(description)
    assert processor(file) == platform.machine() + model


def test_results_are_recorded_with_the_processor_that_rounded_them() -> None:
    assert package_versions()["processor"].startswith(platform.machine())
