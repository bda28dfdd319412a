"""Chaos: what its seeds decide, what it calls a failure, and real runs as a user starts them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))  # as Python does for a script

import chaos  # noqa: E402
from chaos_runs import report as reporting  # noqa: E402
from chaos_runs.processes import Process, descendants, end_all, wait_until_gone  # noqa: E402
from chaos_runs.report import Report  # noqa: E402
from chaos_runs.schedule import KINDS, SUDDEN, draw  # noqa: E402
from chaos_runs.supervisor import Supervisor  # noqa: E402

SEEDS = range(200)


def test_a_schedule_is_a_function_of_the_seed() -> None:
    assert [draw(seed) for seed in SEEDS] == [draw(seed) for seed in SEEDS]
    assert len({draw(seed) for seed in SEEDS}) == len(SEEDS)


def test_schedules_have_all_kinds_of_faults() -> None:
    assert {kind for seed in SEEDS for kind in draw(seed).planned} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_that_are_not_asked_for_do_not_come(kind: str) -> None:
    for seed in SEEDS:
        assert list(draw(seed, [kind]).planned) == [kind]


@pytest.mark.parametrize("seed", SEEDS)
def test_one_node_at_least_is_there_at_any_time(seed: int) -> None:
    schedule = draw(seed)
    nodes = schedule.nodes
    times = [fault.at for fault in schedule.faults]
    assert times == sorted(times)
    assert all(0 < at < 1.2 for at in times)
    for fault in schedule.faults:
        nodes += {"node": -1, "join": 1}.get(fault.kind, 0)
        assert 1 <= nodes <= 2
    assert nodes == 2


def good(seed: int = 0, **changes: Any) -> Report:
    values = {
        "planned": {"sigkill": 2, "hang": 1},
        "happened": {"sigkill": 2},
        "rows_asked": 6600,
        "rows_answered": 6600,
        "weights_equal": True,
        "gradients_equal": True,
        "calm_equal": True,
        "recovered": True,
        "seconds": 9.0,
        "calm_seconds": 4.0,
        **changes,
    }
    return Report(seed, **values)


def test_all_well() -> None:
    assert good().problems == []
    assert reporting.exit_code([good(1), good(2)]) == 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"weights_equal": False, "difference": 0.25}, "weights differ by up to 0.25"),
        ({"gradients_equal": False}, "gradients differ"),
        ({"calm_equal": False}, "differs on the pool afterwards"),
        ({"rows_answered": 6590}, "lost 10 rows"),
        ({"rows_answered": 6601}, "answered 1 rows twice"),
        ({"recovered": False}, "not all actors came back"),
        ({"left_behind": ["12 ray::LauncherActor"]}, "1 processes left behind"),
        ({"complaints": ["qailab.distributed: the dispatcher failed"]}, "1 errors logged"),
        ({"hang": True}, "hangs"),
        ({"error": "Traceback ...\nPoolError: no"}, "PoolError: no"),
    ],
)
def test_what_is_wrong_is_said_and_the_exit_status_is_1(changes: dict[str, Any], says: str) -> None:
    bad = good(3, **changes)
    assert bad.problems == [says]
    assert reporting.exit_code([good(), bad]) == 1
    assert says in reporting.table([good(), bad])
    assert says in reporting.line(bad)
    assert "1 ok, 1 not (seeds 3)" in reporting.summary([good(), bad])


def test_no_run_at_all_is_no_success() -> None:
    assert reporting.exit_code([]) == 1


def test_the_table_tells_what_found_nobody_to_hit() -> None:
    heading, _, line = reporting.table([good(8)]).splitlines()
    assert heading.split()[:2] == ["seed", "faults"]
    assert "sigkill 2, hang 0/1" in line
    assert line.split()[0] == "8"
    assert "5.0" in line.split()  # lost seconds
    assert line.endswith("yes  ok")


def test_reports_are_written(tmp_path: Path) -> None:
    reports = [good(1), good(2, hang=True, stuck="File ...")]
    for report in reports:
        reporting.write(tmp_path, report)
    reporting.write_all(tmp_path, reports)
    listed = json.loads((tmp_path / "reports.json").read_text())
    assert listed == [json.loads((tmp_path / f"seed-{n}.json").read_text()) for n in (1, 2)]
    assert [report["problems"] for report in listed] == [[], ["hangs"]]
    assert reporting.table(reports) in (tmp_path / "table.txt").read_text()


@pytest.mark.parametrize(
    ("arguments", "seeds"),
    [
        ([], range(10)),
        (["--seed", "4"], [4]),
        (["--seed", "4", "--runs", "3"], [4, 5, 6]),
        (["--runs", "2"], [0, 1]),
        (["--seeds", "9", "3"], [9, 3]),
    ],
)
def test_which_seeds(arguments: list[str], seeds: Sequence[int]) -> None:
    assert chaos.parse_plan(arguments).seeds == tuple(seeds)


@pytest.mark.parametrize(
    "arguments", [["--faults", "flood"], ["--actors", "1"], ["--seeds", "1", "--runs", "2"]]
)
def test_wrong_options(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        chaos.parse_plan(arguments)
    assert "error" in capsys.readouterr().err


def test_the_exit_status_is_1_when_weights_differ(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for equal in (True, False):
        report = good(weights_equal=equal, difference=0.5)
        monkeypatch.setattr(Supervisor, "run", lambda *_, report=report: iter([report]))
        assert chaos.main(["--out", str(tmp_path)]) == int(not equal)
    assert "weights differ by up to 0.5" in capsys.readouterr().out


def test_only_what_was_started_since_is_ended() -> None:
    spared, ended = (subprocess.Popen(["sleep", "60"]) for _ in range(2))
    try:
        spare = [process for process in descendants() if process.pid != ended.pid]
        assert end_all(spare) == []
        assert ended.wait(5) == -signal.SIGKILL
        assert spared.poll() is None
    finally:
        spared.kill()
        spared.wait()


LONGEST = 250  # seconds, on a busy machine; about 30 on one that is not
long = pytest.mark.timeout(LONGEST + 50)


@contextmanager
def command(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    run = subprocess.Popen(
        [sys.executable, "scripts/chaos.py", "--out", str(folder), *options],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield run
    finally:
        if run.poll() is None:  # the test has failed
            run.terminate()
        run.communicate(timeout=60)


@pytest.mark.integration
@pytest.mark.slow
@long
def test_training_survives_its_faults(tmp_path: Path) -> None:
    kinds = [kind for kind in SUDDEN if kind not in ("hang", "node")]  # those take longest
    options = [
        "--seed", "1", "--runs", "2", "--steps", "3", "--actors", "2",
        "--faults", *kinds, "transient", "--chunk-timeout", "30", "--deadline", "100",
    ]  # fmt: skip
    with command(tmp_path, *options) as run:
        output, _ = run.communicate(timeout=LONGEST)
    assert run.returncode == 0, output + (tmp_path / "worker.log").read_text()
    reports = json.loads((tmp_path / "reports.json").read_text())
    assert [report["seed"] for report in reports] == [1, 2]
    for report in reports:
        assert report["rows_asked"] == report["rows_answered"] > 0
        assert report["weights_equal"]
        assert report["replaced"] >= 1
        assert report["problems"] == []
    assert "2 ok, 0 not" in output


@pytest.mark.integration
@pytest.mark.slow
@long
def test_a_run_that_does_not_end_is_reported_and_ended(tmp_path: Path) -> None:
    with command(tmp_path, "--seed", "1", "--deadline", "0.5") as run:
        output, _ = run.communicate(timeout=LONGEST)
    assert run.returncode == 1, output
    (report,) = json.loads((tmp_path / "reports.json").read_text())
    assert report["problems"] == ["hangs"]
    assert "most recent call first" in report["stuck"]  # where its threads were


@pytest.mark.integration
@pytest.mark.slow
@long
def test_ctrl_c_ends_everything(tmp_path: Path) -> None:
    before = set(descendants())
    log = tmp_path / "worker.log"
    with command(tmp_path, "--seed", "1", "--steps", "500") as run:
        deadline = time.monotonic() + LONGEST / 2
        while not (log.exists() and "--- seed" in log.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        time.sleep(2.0)
        started: set[Process] = set(descendants()) - before
        assert len(started) > 5  # the supervisor, the worker, Ray
        run.send_signal(signal.SIGINT)
        output, _ = run.communicate(timeout=LONGEST / 4)
    assert run.returncode == 130, output
    assert "stopped after 0 of 1 runs" in output
    assert wait_until_gone(started, 5.0) == []
