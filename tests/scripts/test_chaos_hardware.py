"""Chaos on hardware: what its seeds decide, what it calls a failure, and a sample of real runs."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))  # as Python does for a script

import chaos_hardware  # noqa: E402
from hardware_runs import report as reporting  # noqa: E402
from hardware_runs.inspection import problems_at_server, problems_of_journal  # noqa: E402
from hardware_runs.report import Report  # noqa: E402
from hardware_runs.scenario import draw  # noqa: E402
from hardware_runs.watch import Hang, Watched  # noqa: E402

from qailab.journal import Journal, Work, this_owner  # noqa: E402
from qailab.rehearsal import JobRecord, SessionRecord  # noqa: E402
from qailab.rehearsal.faults import KINDS  # noqa: E402

SEEDS = range(200)


def test_a_scenario_is_a_function_of_the_seed() -> None:
    assert [draw(seed) for seed in SEEDS] == [draw(seed) for seed in SEEDS]
    assert len({draw(seed) for seed in SEEDS}) == len(SEEDS)


def test_scenarios_have_all_there_is() -> None:
    scenarios = [draw(seed) for seed in SEEDS]
    faults = [fault for scenario in scenarios for fault in scenario.faults]
    assert {fault.kind for fault in faults} == set(KINDS)
    assert {fault.status for fault in faults if fault.kind == "http"} == {429, 500, 502, 503}
    assert {scenario.mode for scenario in scenarios} == {"session", "batch", "job"}
    assert {scenario.sampler for scenario in scenarios} == {"client", "server"}
    assert {len(scenario.devices) for scenario in scenarios} == {1, 2}
    assert {scenario.journal for scenario in scenarios} == {True, False}


@pytest.mark.parametrize(
    ("arguments", "counts"),
    [
        ([], {"faults": 200, "hopeless": 14, "late": 10, "kills": 20, "budgets": 20}),
        (["--kills", "3"], {"faults": 0, "hopeless": 0, "late": 0, "kills": 3, "budgets": 0}),
        (
            ["--faults", "1", "--only", "7"],
            {"faults": 1, "hopeless": 0, "late": 0, "kills": 0, "budgets": 0},
        ),
    ],
)
def test_what_is_run(arguments: list[str], counts: dict[str, int]) -> None:
    assert chaos_hardware.parse_plan(arguments).counts == counts


def test_which_seeds_are_run() -> None:
    assert chaos_hardware.parse_plan(["--faults", "3", "--seed", "5"]).seeds("faults") == range(
        5, 8
    )
    only = chaos_hardware.parse_plan(["--faults", "1", "--only", "7"])
    assert list(only.seeds("faults")) == [7]
    assert list(only.seeds("hopeless")) == []


def test_a_problem_is_said_and_the_exit_status_is_1() -> None:
    good, bad = Report("faults", 1), Report("faults", 2, problems=["hangs"])
    assert reporting.exit_code([good]) == 0
    assert reporting.exit_code([good, bad]) == 1
    assert reporting.exit_code([]) == 1
    assert reporting.line(bad).endswith(": hangs")
    assert "2 runs, 1 ok, 1 not (seeds 2)" in reporting.summary([good, bad])


def test_what_does_not_end_is_left_behind_with_its_stack() -> None:
    release = threading.Event()
    watched = Watched(release.wait)
    with pytest.raises(Hang, match="watched"):
        watched.result(0.05)
    release.set()
    assert watched.result(5.0) is True


def job(number: int, **changes: Any) -> JobRecord:
    values = {
        "id": f"job{number}", "backend": "ibm_lagos", "program": "sampler", "mode": "session",
        "session": "s", "tags": (), "rows": 4, "shots": 128, "content": f"rows{number}",
        "state": "Completed", "reason": "", "created": 0.0, "started": 0.0, "ended": 1.0,
        "qpu_seconds": 2.0, "run_seconds": 0.1, **changes,
    }  # fmt: skip
    return JobRecord(**values)


def server(*jobs: JobRecord, session: str = "closed") -> Any:
    from qailab.rehearsal.server import find_duplicates

    record = SessionRecord("s", "ibm_lagos", "session", session, 60.0, 0.0, 1.0, "")
    return SimpleNamespace(
        jobs=list(jobs), sessions=[record], duplicates=lambda: find_duplicates(jobs)
    )


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (server(job(1), job(2, content="rows1")), "have the same rows"),
        (server(job(1), job(2), job(3)), "12 rows were answered, 8 were asked for"),
        (server(job(1)), "4 rows were answered, 8 were asked for"),
        (server(job(1), job(2), job(3, state="Running")), "job job3 was left running"),
        (server(job(1), job(2), session="open"), "session s was left open"),
    ],
)
def test_what_must_not_be_at_a_server_is_said(found: Any, says: str) -> None:
    assert any(says in problem for problem in problems_at_server(found, 8))
    assert problems_at_server(server(job(1), job(2), job(3, state="Failed")), 8) == []


def test_a_journal_that_differs_from_the_server_is_said(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    with Journal(path) as journal:
        work = Work("c", 128, 0, 0, "forward", 0, 4, bytes(32))
        (entry,) = journal.claim(
            work, most_rows=4, group=1, backend="ibm_lagos", owner=this_owner()
        )
        journal.submitted(entry.id, job_id="job1", backend="ibm_lagos", session="s")
        journal.ended(entry.id, "failed", "no", 2.0)
    assert problems_of_journal(str(path), server(job(1, state="Failed"))) == []
    assert problems_of_journal(str(path), server(job(1))) == [
        "job job1 is Completed, failed in the journal"
    ]
    assert problems_of_journal(str(path), server()) == [
        "job job1 of the journal is not at the server"
    ]
    assert problems_of_journal(str(path), server(job(1, state="Failed"), job(2))) == [
        "completed job job2 is not in the journal"
    ]


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_sample_of_all_kinds(tmp_path: Path) -> None:
    options = ["--faults", "3", "--hopeless", "1", "--kills", "2", "--budgets", "1"]
    options += ["--pool-every", "0", "--steps", "2", "--deadline", "60", "--out", str(tmp_path)]
    run = subprocess.Popen(
        [sys.executable, "scripts/chaos_hardware.py", *options],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = run.communicate(timeout=380)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        output, _ = run.communicate(timeout=10)
        pytest.fail(f"it hangs:\n{output}")
    assert run.returncode == 0, output
    reports = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert [report["problems"] for report in reports] == [[]] * len(reports)
    assert {report["kind"] for report in reports} == {"faults", "hopeless", "kills", "budget"}
    assert sum(report["figures"].get("kills", 0) for report in reports) == 2
