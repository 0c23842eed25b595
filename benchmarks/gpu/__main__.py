"""Runs the parts one after another, each in a process of its own with a time limit, and writes what they measured.

    python -m benchmarks.gpu [--only PART ...] [--small] [--json FILE] [--markdown FILE]

A part that fails or takes too long is a row with its reason, and the next one starts. `--small` runs tiny shapes, also
on a CPU: it shows that the programs work and measures nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.rows import Measurement, failed, markdown

LIMITS = {
    "kernels": 60,
    "objective": 90,
    "training": 110,
    "grpo": 120,
    "rollouts": 80,
    "experts": 60,
    "evaluation": 60,
}
"""Part -> seconds, in order of worth; together less than ten minutes."""

ROOT = Path(__file__).parents[2]


def main(argv: Sequence[str] | None = None, limits: Mapping[str, float] = LIMITS) -> int:
    """Run the parts; the exit code is 1 if one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="What waits for a GPU")
    parser.add_argument("--only", nargs="+", choices=list(limits), default=list(limits), help="run these parts")
    parser.add_argument("--small", action="store_true", help="tiny shapes, also on a CPU")
    parser.add_argument("--json", type=Path, default=Path("results/gpu.json"), help="where the rows are written")
    parser.add_argument("--markdown", type=Path, default=Path("results/gpu.md"), help="where the table is written")
    options = parser.parse_args(argv)
    rows: list[Measurement] = []
    for part in options.only:
        started = time.monotonic()
        rows += run_part(part, seconds=limits[part], small=options.small)
        print(f"{part}: {time.monotonic() - started:.0f} s of at most {limits[part]:.0f}", file=sys.stderr, flush=True)
        # After every part, so that a machine that is taken away leaves what was measured.
        _write(options, rows)
    print(markdown(rows))
    return int(any(row.failure for row in rows))


def run_part(part: str, *, seconds: float, small: bool) -> list[Measurement]:
    """The rows of one part, or one row with the reason why it has none."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "benchmarks.gpu.parts", part, str(output), *(["--small"] if small else [])]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "VLLM_LOGGING_LEVEL": "ERROR"}
        if small:
            # Triton's interpreter runs the kernels on a CPU.
            environment |= {"TRITON_INTERPRET": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "CUDA_VISIBLE_DEVICES": ""}
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        try:
            _, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # vLLM and TRL have children
            process.communicate()
            errors = f"it took more than {seconds:g} s"
        rows = [Measurement(**row) for row in json.loads(output.read_text())] if output.exists() else []
        if process.returncode:
            reason = (errors.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
            rows.append(failed(part, "the rest of this part" if rows else "this part", reason))
        return rows


def _write(options: argparse.Namespace, rows: Sequence[Measurement]) -> None:
    content: dict[str, Any] = {"small": options.small, "rows": [row.to_json() for row in rows]}
    for path, text in ((options.json, json.dumps(content, indent=1) + "\n"), (options.markdown, markdown(rows))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
