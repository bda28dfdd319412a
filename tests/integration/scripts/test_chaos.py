"""A seeded sample of chaos, as a user starts it."""

import json
from pathlib import Path
from typing import Any

from tests.support.training import finish, start


def chaos(options: str, folder: Path, **environment: str) -> tuple[int, str, list[dict[str, Any]]]:
    """Exit status, output and reports of a run."""
    program = start(folder, "chaos.py", *options.split(), "--out", str(folder), **environment)
    status, output, errors = finish(program, 280)
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return status, output + errors, reports


def test_trainings_survive_the_faults_of_a_pool(tmp_path: Path) -> None:
    # Hangs and lost nodes take longest, and are tests of the pool's own.
    options = "pool --seeds 1 --first 1 --steps 3 --actors 2 --faults sigkill raykill all transient"
    status, output, (report,) = chaos(f"{options} --chunk-timeout 30", tmp_path)
    assert status == 0, output
    assert "1 ok, 0 not" in output
    assert report["problems"] == []
    assert report["figures"]["replaced"] >= 1


def test_nothing_is_lost_or_paid_twice_on_hardware(tmp_path: Path) -> None:
    status, output, reports = chaos("hardware --seeds 1 --steps 2 --first 0", tmp_path)
    assert status == 0, output
    kinds = ["budget", "faults", "kills", "late"]
    assert [report["kind"] for report in reports] == kinds
    assert [report["problems"] for report in reports] == [[]] * len(kinds)


def test_a_pool_stays_level(tmp_path: Path, shared_ray: dict[str, str]) -> None:
    status, output, (report,) = chaos("soak --steps 100 --circuits 10", tmp_path, **shared_ray)
    assert status == 0, output
    assert report["figures"]["steps"] == 110


def test_a_run_that_does_not_end_is_reported_with_its_stacks(tmp_path: Path) -> None:
    status, output, (report,) = chaos("hardware --kinds kills --seeds 1 --deadline 1", tmp_path)
    assert status == 1
    assert "0 ok, 1 not (seeds 0)" in output
    assert report["problems"] == ["hangs"]
    assert "most recent call first" in report["log"]
