"""When a GPU is full or busy, by what the driver reports."""

import pytest

from sweeps.execute.gpus import _Gpu


@pytest.mark.parametrize(
    ("used", "mode", "full"),
    [(0, "Default", False), (900, "Default", False), (901, "Default", True), (0, "Prohibited", True)],
)
def test_a_gpu_is_full_above_nine_tenths_of_its_memory(used: float, mode: str, *, full: bool) -> None:
    assert _Gpu("0", "GPU-1", used, 1000, 0, mode, ()).is_full == full
    assert not _Gpu("0", "GPU-1", used, 0, 0, "Default", ()).is_full  # its memory is not known


@pytest.mark.parametrize(("utilization", "busy"), [(0, False), (94.9, False), (95.0, True), (100, True)])
def test_a_gpu_is_busy_from_ninety_five_percent_on(utilization: float, *, busy: bool) -> None:
    assert _Gpu("0", "GPU-1", 0, 1000, utilization, "Default", ()).is_busy == busy


def test_a_gpu_is_named_by_index_uuid_or_instance() -> None:
    gpu = _Gpu("1", "GPU-abc", 0, 1000, 0, "Default", ("MIG-1", "MIG-GPU-abc/1/0"))
    assert [gpu.is_named(name) for name in ("1", "GPU-ab", "MIG-1", "MIG-GPU-abc/1/0")] == [True] * 4
    assert not any(gpu.is_named(name) for name in ("0", "GPU-b", "MIG-2", "abc"))
