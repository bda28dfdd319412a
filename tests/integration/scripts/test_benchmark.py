"""Each benchmark at its smallest size, as a user starts it. What it measures is not asserted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SMALLEST = {
    "gradients": "--only small grid steps --qubits 2 --batch 2 --actors 2 --rounds 1 "
    "--repetitions 1",
    "scale": "--only efficiency kills rows --actors 2 --latencies 50 --seconds 1.5 --rows 10000",
    "hardware": "--samples 1 --steps 1 --shots 8 --queue-seconds 0.1",
}
TABLES = {
    "gradients": {"small": 2, "grid": 2, "steps": 3},
    "scale": {"efficiency": 2, "rows": 1},
    "hardware": {"hardware": 2, "queue": 2, "parallel": 2},
}


@pytest.mark.parametrize("command", SMALLEST)
def test_it_runs_at_its_smallest_size(
    command: str, tmp_path: Path, shared_ray: dict[str, str]
) -> None:
    options = [command, *SMALLEST[command].split(), "--out", str(tmp_path)]
    run = subprocess.run(
        [sys.executable, "scripts/benchmark.py", *options],
        cwd=ROOT,
        env={**os.environ, **shared_ray, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.returncode == 0, run.stderr
    assert max(map(len, run.stdout.splitlines())) <= 100 + len(str(tmp_path))
    figures = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert {name: len(rows) for name, rows in figures.items()} == TABLES[command]
    for name in {"grid", "efficiency"} & set(figures):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
