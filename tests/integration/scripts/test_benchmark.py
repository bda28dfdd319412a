"""Each benchmark at its smallest size, as a user starts it. What it measures is not asserted."""

import json
from pathlib import Path

import pytest

from tests.support.training import finish, start

SMALLEST = {
    "gradients": "--only small grid steps --qubits 2 --batch 2 --actors 2 --rounds 1",
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
    program = start(tmp_path, "benchmark.py", *options, HOME=str(tmp_path), **shared_ray)
    status, output, errors = finish(program, 200)
    assert status == 0, errors
    assert max(map(len, output.splitlines())) <= 100 + len(str(tmp_path))
    figures = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert {name: len(rows) for name, rows in figures.items()} == TABLES[command]
    for name in {"grid", "efficiency"} & set(figures):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
