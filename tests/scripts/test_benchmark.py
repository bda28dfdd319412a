"""The benchmark as a user starts it, at its smallest. What it measures is not asserted."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPTIONS = ["--quick", "--qubits", "4", "--batch", "1", "--actors", "1"]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("benchmark")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    # A Ray of this test session would be used instead of a local one.
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "scripts/benchmark.py", *OPTIONS, "--out", str(folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.mark.integration
@pytest.mark.slow
def test_measures_every_mode_and_the_bound(run: tuple[Path, str]) -> None:
    folder, _ = run
    grid = [line for line in read(folder / "figures.csv") if line["inputs"] == "1"]
    assert [line["mode"] for line in grid] == ["in-process", "1 actor"]
    for line in grid:
        assert (line["qubits"], line["batch"], line["shots"]) == ("4", "1", "1024")
        assert int(line["rows"]) == 2 * 20  # two shifts for each of 4 + 16 angles
        assert float(line["ms"]) > 0
        assert float(line["bound_ms"]) > 0
        assert float(line["of_bound"]) == pytest.approx(
            float(line["ms"]) / float(line["bound_ms"]), rel=1e-3
        )
        assert line["rounds"] == "2"
    assert grid[0]["bytes_per_row"] == ""
    assert float(grid[1]["bytes_per_row"]) > 16  # two floats a row come back


@pytest.mark.integration
@pytest.mark.slow
def test_says_what_must_hold(run: tuple[Path, str]) -> None:
    folder, output = run
    held = {line["what"]: line for line in read(folder / "must_hold.csv")}
    assert {line["verdict"] for line in held.values()} <= {"ok", "SHORT", "-"}
    assert held["n=6 B=16: in-process / raw Aer"]["verdict"] == "-"  # not in this run
    assert held["n=4 B=1, weights only: pool - in-process"]["measured"].endswith("ms")
    assert "neither" in held["import qailab.torch"]["measured"]
    assert "Must hold" in output
    assert all(what in output for what in held)


@pytest.mark.integration
@pytest.mark.slow
def test_draws_a_plot(run: tuple[Path, str]) -> None:
    folder, _ = run
    assert (folder / "benchmark.png").read_bytes().startswith(b"\x89PNG")
