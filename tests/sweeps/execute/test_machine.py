"""What a machine offers: limits of control groups, of real ones where this machine has them, and GPUs of a driver."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.control_groups import cores_allowed, memory_allowed
from pipelines.errors import UserError
from sweeps.execute.gpus import available_gpus
from sweeps.execute.machine import threads_wanted

GIB = 2**30
MOUNT = "35 31 0:32 {root} {mounted} rw,relatime shared:7 - {kind} {kind} {options}\n"


def group(folder: Path, **files: object) -> Path:
    """Writes a folder of a control group; `cpu_max` becomes `cpu.max`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("_", ".", 1)).write_text(f"{value}\n")
    return folder


def proc(folder: Path, membership: str, *mounts: tuple[str, Path, str, str]) -> Path:
    """Writes `cgroup` and `mountinfo` of a process."""
    folder = folder / "proc"
    folder.mkdir()
    (folder / "cgroup").write_text(membership)
    lines = [MOUNT.format(root=root, mounted=path, kind=kind, options=options) for root, path, kind, options in mounts]
    (folder / "mountinfo").write_text("22 1 0:20 / / rw - overlay overlay rw\n" + "".join(lines))
    return folder


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("200000 100000", 2), ("150000 100000", 1), ("50000 100000", 1), ("max 100000", None), ("800000 50000", 16)],
)
def test_a_quota_of_version_2(tmp_path: Path, quota: str, cores: int | None) -> None:
    group(tmp_path / "mounted" / "mine", cpu_max=quota)
    process = proc(tmp_path, "0::/mine\n", ("/", tmp_path / "mounted", "cgroup2", "rw"))
    assert cores_allowed(process) == cores


def test_every_level_above_the_process_counts(tmp_path: Path) -> None:
    mounted = tmp_path / "mounted"
    group(mounted / "slice", cpu_max="300000 100000", memory_max=4 * GIB, memory_current=GIB, memory_stat="anon 1")
    group(mounted / "slice" / "job", cpu_max="max 100000", memory_max="max", memory_current=GIB, memory_stat="anon 1")
    process = proc(tmp_path, "0::/slice/job\n", ("/", mounted, "cgroup2", "rw"))
    assert cores_allowed(process) == 3
    assert memory_allowed(process) == 3 * GIB


def test_another_groups_limits_do_not_count(tmp_path: Path) -> None:
    mounted = tmp_path / "mounted"
    group(mounted / "neighbour", cpu_max="100000 100000")
    group(mounted / "mine", cpu_max="max 100000")
    assert cores_allowed(proc(tmp_path, "0::/mine\n", ("/", mounted, "cgroup2", "rw"))) is None


def test_page_cache_is_free_and_shared_memory_is_not(tmp_path: Path) -> None:
    statistics = f"anon {GIB}\nfile {6 * GIB}\nshmem {GIB}\ninactive_file {3 * GIB}\nactive_file {2 * GIB}"
    group(tmp_path / "m" / "mine", memory_max=8 * GIB, memory_current=7 * GIB, memory_stat=statistics)
    assert memory_allowed(proc(tmp_path, "0::/mine\n", ("/", tmp_path / "m", "cgroup2", "rw"))) == 6 * GIB


def test_a_process_is_slowed_down_above_memory_high(tmp_path: Path) -> None:
    group(tmp_path / "m", memory_max=8 * GIB, memory_high=2 * GIB, memory_current=GIB, memory_stat="anon 1")
    assert memory_allowed(proc(tmp_path, "0::/\n", ("/", tmp_path / "m", "cgroup2", "rw"))) == GIB


MEMORY_STAT = """anon 1610612736
file 3758096384
kernel 412090368
kernel_stack 3391488
pagetables 21921792
sock 0
shmem 536870912
file_mapped 201326592
file_dirty 0
inactive_anon 1879048192
active_anon 268435456
inactive_file 2147483648
active_file 1073741824
unevictable 0
slab_reclaimable 134217728
slab_unreclaimable 41943040
slab 176160768
workingset_refault_anon 0
pgfault 120934
pgmajfault 12"""
"""As the kernel writes it: 3 GiB of page cache and 128 MiB of its own memory can be reclaimed, shared memory cannot."""


@pytest.mark.parametrize("view", ["systemd-run", "docker", "docker with the host's groups", "hybrid"])
def test_a_recorded_hierarchy_of_version_2(tmp_path: Path, view: str) -> None:
    """A scope of 2.5 cores and 8 GiB below slices without limits, as systemd-run, docker and systemd's hybrid
    mode (controllers of version 1 are mounted, but have no limit) show it to a process."""
    mounted = tmp_path / "sys fs" / "cgroup"
    path = "/user.slice/user-1000.slice/user@1000.service/app.slice/run-r5.scope"
    scope = mounted if view == "docker" else mounted / path[1:]
    for folder in [scope, *scope.parents]:
        if not folder.is_relative_to(mounted):
            break
        group(folder, cpu_max="max 100000", memory_max="max", memory_high="max", memory_low=0,
              memory_current=6 * GIB, memory_stat=MEMORY_STAT)  # fmt: skip
    group(scope, cpu_max="250000 100000", memory_max=8 * GIB, memory_current=5 * GIB)
    if view in ("systemd-run", "hybrid"):  # the root of the machine has no limits, and no files for them
        for name in ("cpu.max", "memory.max", "memory.high", "memory.low", "memory.current"):
            (mounted / name).unlink()
    escaped = Path(str(mounted).replace(" ", "\\040"))
    mounts = [("/", escaped, "cgroup2", "rw,nsdelegate,memory_recursiveprot")]
    membership = "0::/\n" if view == "docker" else f"0::{path}\n"
    if view == "hybrid":
        unlimited = {"cpu_cfs_quota_us": -1, "cpu_cfs_period_us": 100000, "memory_usage_in_bytes": GIB,
                     "memory_limit_in_bytes": 2**63 - 4096, "memory_stat": "total_cache 0"}  # fmt: skip
        group(tmp_path / "one", **unlimited)
        membership += "5:cpu,cpuacct:/\n4:memory:/\n1:name=systemd:/\n"
        mounts += [("/", tmp_path / "one", "cgroup", "rw,cpu,cpuacct"), ("/", tmp_path / "one", "cgroup", "rw,memory")]
    process = proc(tmp_path, membership, *mounts)
    assert cores_allowed(process) == 2
    assert memory_allowed(process) == 6 * GIB + 128 * 2**20


@pytest.mark.parametrize("root", ["/", "/docker/abc"], ids=["on the host", "in a container"])
def test_version_1_has_a_hierarchy_per_controller(tmp_path: Path, root: str) -> None:
    """In a container the mounted root is the container's own group, whose path on the host the process has."""
    cpu, memory = tmp_path / "cpu", tmp_path / "memory"
    inside = "docker/abc" if root == "/" else "."
    group(cpu / inside, **{"cpu_cfs_quota_us": 250000, "cpu_cfs_period_us": 100000})
    group(memory / inside, memory_limit_in_bytes=4 * GIB, memory_usage_in_bytes=3 * GIB,
          memory_stat=f"inactive_file 1\ntotal_inactive_file {2 * GIB}\ntotal_rss {GIB}")  # fmt: skip
    mounts = [(root, cpu, "cgroup", "rw,cpu,cpuacct"), (root, memory, "cgroup", "rw,memory")]
    process = proc(tmp_path, "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n", *mounts)
    assert cores_allowed(process) == 2
    assert memory_allowed(process) == 3 * GIB


def test_a_system_without_control_groups_has_no_limits(tmp_path: Path) -> None:
    assert cores_allowed(tmp_path) is None
    assert memory_allowed(tmp_path) is None


def hierarchy(controller: str) -> Path | None:
    """Where version 1 of a controller is mounted and groups can be made."""
    folder = Path("/sys/fs/cgroup") / controller
    return folder if (folder / "cgroup.procs").exists() and os.getuid() == 0 else None


@pytest.fixture
def real_groups() -> Iterator[list[Path]]:
    """A control group with a quota of two cores and 2 GiB, made for the test."""
    roots = [hierarchy("cpu"), hierarchy("memory")]
    name = f"shaping-test-{uuid.uuid4().hex[:8]}"
    made = [root / name for root in roots if root]
    if len(made) < 2:
        pytest.skip("no control groups of version 1 that can be made here")
    try:
        try:
            for folder in made:
                folder.mkdir()
            (made[0] / "cpu.cfs_quota_us").write_text("120000")
            (made[1] / "memory.limit_in_bytes").write_text(str(2 * GIB))
        except OSError as error:
            pytest.skip(f"control groups cannot be made here: {error}")
        yield made
    finally:
        for folder in made:
            if folder.exists():
                folder.rmdir()


def test_a_process_in_a_real_control_group(real_groups: list[Path], tmp_path: Path) -> None:
    """It reads 300 MB of a file into the page cache, and allocates 200 MB."""
    (tmp_path / "file").write_bytes(bytes(300_000_000))
    code = f"""
import os
for folder in {[str(folder) for folder in real_groups]}:
    open(folder + "/cgroup.procs", "w").write(str(os.getpid()))
from sweeps.execute.machine import Machine
before = Machine.here().memory
open("{tmp_path / "file"}.copy", "wb").write(open("{tmp_path / "file"}", "rb").read())
cached = Machine.here().memory
held = bytearray(os.urandom(1) * 200_000_000)
machine = Machine.here()
print(machine.cores, before, cached, machine.memory)
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    cores, before, cached, allocated = map(int, output.split())
    assert cores == 1
    assert 1.8 * GIB < before <= 2 * GIB
    assert abs(before - cached) < 100e6
    assert 150e6 < cached - allocated < 250e6


DRIVER = """#!{python}
import sys
gpus = {gpus!r}
if "-L" in sys.argv:
    for index, gpu in enumerate(gpus):
        print(f"GPU {{index}}: NVIDIA H100 80GB HBM3 (UUID: {{gpu['uuid']}})")
        for number, instance in enumerate(gpu.get("instances", ())):
            print(f"  MIG 1g.10gb     Device  {{number}}: (UUID: {{instance}})")
    sys.exit()
(query,) = [word.split("=")[1] for word in sys.argv if word.startswith("--query-gpu=")]
for index, gpu in enumerate(gpus):
    mig = "Enabled" if gpu.get("instances") else "Disabled"
    row = {{"index": index, "memory.used": 500, "memory.total": 81559, "utilization.gpu": 0, "compute_mode": "Default",
           "mig.mode.current": mig, **gpu}}
    print(", ".join(str(row[name]) for name in query.split(",")))
"""
A, B, C = ("GPU-aaaa1111-0000", "GPU-bbbb2222-0000", "GPU-cccc3333-0000")
M1, M2 = "MIG-11111111-0000", "MIG-22222222-0000"


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Installs an nvidia-smi that lists the given GPUs."""

    def install(*gpus: dict[str, object], visible: str | None = None) -> None:
        path = tmp_path / "bin" / "nvidia-smi"
        path.parent.mkdir()
        path.write_text(DRIVER.format(python=sys.executable, gpus=list(gpus)))
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return install


FULL = {"memory.used": 79000, "utilization.gpu": 100}


def test_all_gpus_are_used_by_uuid(driver) -> None:  # type: ignore[no-untyped-def]
    driver({"uuid": A}, {"uuid": B})
    assert available_gpus() == (A, B)


def test_a_gpu_that_another_process_fills_is_not_taken(driver) -> None:  # type: ignore[no-untyped-def]
    driver({"uuid": A, **FULL}, {"uuid": B}, {"uuid": C, "compute_mode": "Prohibited"})
    assert available_gpus() == (B,)


@pytest.mark.parametrize("visible", [None, "0", A])
def test_no_free_gpu_is_an_error(driver, visible: str | None) -> None:  # type: ignore[no-untyped-def]
    """Without it stage runs would run out of memory, or silently compute on the CPU."""
    driver({"uuid": A, **FULL}, visible=visible)
    with pytest.raises(UserError, match=r"CUDA_VISIBLE_DEVICES=.*79000 of 81559 MiB"):
        available_gpus()


def test_a_gpu_that_computes_for_others_is_the_last_choice(driver) -> None:  # type: ignore[no-untyped-def]
    driver({"uuid": A, "utilization.gpu": 100}, {"uuid": B, "utilization.gpu": "[N/A]"})
    assert available_gpus() == (B,)


def test_a_gpu_that_computes_for_others_is_used_if_there_is_no_other(driver) -> None:  # type: ignore[no-untyped-def]
    driver({"uuid": A, "utilization.gpu": 100})
    assert available_gpus() == (A,)


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("1", ("1",)),
        ("1,0", ("1", "0")),
        (f"{B}", (B,)),
        ("GPU-bbbb", ("GPU-bbbb",)),  # CUDA takes the beginning of a UUID
        ("0,-1,1", ("0",)),  # CUDA stops at the first name that is no GPU
        ("0,7,1", ("0",)),
        ("0,0", ("0",)),
        (" 0 , 1 ", ("0", "1")),
        ("", ()),
        ("-1", ()),
        ("NoDevFiles", ()),  # what Slurm sets in a job without GPUs
    ],
)
def test_visible_devices(driver, visible: str, names: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
    driver({"uuid": A}, {"uuid": B}, visible=visible)
    assert available_gpus() == names


def test_a_named_full_gpu_is_left_out(driver) -> None:  # type: ignore[no-untyped-def]
    driver({"uuid": A, **FULL}, {"uuid": B}, visible="0,1")
    assert available_gpus() == ("1",)


def test_every_instance_of_a_divided_gpu_is_a_gpu(driver) -> None:  # type: ignore[no-untyped-def]
    """The whole GPU's memory says nothing about one instance."""
    driver({"uuid": A, "instances": [M1, M2], **FULL}, {"uuid": B})
    assert available_gpus() == (M1, M2, B)


@pytest.mark.parametrize("name", [M2, f"MIG-{A}/3/0"], ids=["new name", "old name"])
def test_a_visible_instance(driver, name: str) -> None:  # type: ignore[no-untyped-def]
    driver({"uuid": A, "instances": [M1, M2]}, visible=name)
    assert available_gpus() == (name,)


def test_names_are_believed_without_a_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"0,{B},{M1}")
    assert available_gpus() == ("0", B, M1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert available_gpus() == ()


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({}, None),
        ({"OMP_NUM_THREADS": "4"}, 4),
        ({"OMP_NUM_THREADS": "4,2"}, 4),
        ({"MKL_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "4", "MKL_NUM_THREADS": "3"}, 4),
        ({"OMP_NUM_THREADS": ""}, None),
        ({"OMP_NUM_THREADS": "many"}, None),
        ({"OMP_NUM_THREADS": "0"}, None),
    ],
)
def test_thread_settings(environment: dict[str, str], threads: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert threads_wanted() == threads
