"""The benchmark of scaling: its arithmetic, its report, and its smallest run. What it measures is
not asserted."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmark_scale import _median, parse_plan
from benchmarks.devices import (
    CHUNK_ROWS,
    ArithmeticBackend,
    Device,
    backward_rows,
    circuit_for,
)
from benchmarks.driver import (
    DriverCost,
    ManyRows,
    Overhead,
    actors_fed,
    chunks_per_call,
    estimate_feeding,
)
from benchmarks.efficiency import (
    EQUAL,
    KILLS,
    UNEQUAL,
    Efficiency,
    Run,
    chunks_for,
    ideal_seconds,
    latencies_of,
)
from benchmarks.scale_report import Figures, all_claims, write_json

ROOT = Path(__file__).parents[2]
RUN = Run(
    chunks=100, rows=1200, seconds=2.0, cpu_seconds=0.1, races=0, retries=0, ready_seconds=16.0
)


def efficiency(actors: int, latency: float, speeds: str, value: float) -> Efficiency:
    return Efficiency(actors, latency, speeds, 100, 1.0, value, RUN)


# Ideals.


def test_equal_speeds_end_together() -> None:
    latencies = latencies_of(4, 0.05, EQUAL)
    assert latencies == (0.05,) * 4
    chunks = chunks_for(latencies, seconds=1.0)
    assert chunks == 4 * 20
    assert ideal_seconds(chunks, latencies) == pytest.approx(1.0)


def test_unequal_speeds_are_one_two_four_eight() -> None:
    latencies = latencies_of(8, 0.2, UNEQUAL)
    assert sorted(latencies, reverse=True) == [0.2] * 2 + [0.1] * 2 + [0.05] * 2 + [0.025] * 2
    chunks = chunks_for(latencies, seconds=3.0)
    assert chunks == 2 * 15 * (1 + 2 + 4 + 8)  # each ends with a whole chunk after 3 s
    assert ideal_seconds(chunks, latencies) == pytest.approx(3.0)


def test_runs_are_bounded_but_give_everybody_a_chunk() -> None:
    assert chunks_for((0.001,) * 64, seconds=10.0, most=1000) == 15 * 64
    assert chunks_for((0.2,) * 8, seconds=0.01) == 8
    assert chunks_for((0.2,) * 8, seconds=1.0, most=3) == 8


def test_the_median_counts() -> None:
    figures = [efficiency(8, 0.2, EQUAL, value) for value in (0.9, 0.1, 0.8)]
    assert _median(iter(figures).__next__, 3).value == 0.8
    assert _median(iter(figures).__next__, 2).value == 0.1


# Devices.


def test_circuits_differ_in_their_keys_alone() -> None:
    circuits = [circuit_for(number) for number in range(12)]
    assert len({circuit.key for circuit in circuits}) == 12
    assert {circuit.num_angles * 2 for circuit in circuits} == {CHUNK_ROWS}


def test_answers_tell_rows_apart_and_do_not_depend_on_the_cut() -> None:
    circuit = circuit_for(0)
    batch = backward_rows(circuit, samples=7, seed=3)
    whole = ArithmeticBackend().evaluate(circuit, batch)
    assert len(np.unique(whole[:, 0])) == batch.num_rows
    pieces = [
        ArithmeticBackend().evaluate(circuit, batch.part(row, row + 2))
        for row in range(0, batch.num_rows, 2)
    ]
    assert np.array_equal(np.concatenate(pieces), whole)
    outcomes = ArithmeticBackend().outcomes(circuit, batch).estimate
    np.testing.assert_allclose(outcomes.sum(axis=1), 1.0)
    assert (outcomes >= 0).all()


def test_a_device_takes_the_circuits_time_and_announces_it() -> None:
    slow, fast = circuit_for(0), circuit_for(1)
    device = Device({slow.key: 0.2, fast.key: 0.0})
    device.announce(slow)
    assert device.call_seconds == 0.2
    device.announce(fast)
    assert device.call_seconds == ArithmeticBackend.call_seconds
    device.announce(fast, 1.0)
    assert device.call_seconds == 1.0
    assert device.resources.num_cpus == 0
    device.open()
    batch = backward_rows(fast, samples=2, seed=3)
    expected = ArithmeticBackend().evaluate(fast, batch)
    assert np.array_equal(device.evaluate(fast, batch), expected)


# The driver.


@pytest.mark.parametrize(("seconds", "chunks"), [(0.01, 24), (0.1, 2), (1.0, 1), (0.25, 1)])
def test_chunks_of_a_parcel(seconds: float, chunks: int) -> None:
    assert chunks_per_call(seconds) == chunks


def test_actors_fed_by_a_constant_cost() -> None:
    assert actors_fed(0.1, [(4, 0.001)]) == pytest.approx(100)
    assert actors_fed(0.1, [(4, 0.001), (64, 0.001)]) == pytest.approx(100)


def test_actors_fed_by_a_growing_cost() -> None:
    costs = [(actors, 0.001 + 1e-5 * actors) for actors in (1, 4, 16, 64)]
    count = actors_fed(0.1, costs)
    assert count * (0.001 + 1e-5 * count) == pytest.approx(0.1)
    assert count < 100


def test_single_chunks_are_estimated_by_the_cost_of_a_call() -> None:
    costs = [
        DriverCost(4, 0.01, replace(RUN, cpu_seconds=0.01)),  # 0.1 ms a chunk
        DriverCost(4, 0.1, replace(RUN, cpu_seconds=0.05)),
        DriverCost(4, 1.0, RUN),  # 1 ms
    ]
    assert costs[0].per_call == pytest.approx(24 * 0.0001)
    feeding = {each.latency: each for each in estimate_feeding(costs)}
    assert feeding[0.01].single == pytest.approx(10)
    assert feeding[0.01].parcels == pytest.approx(100)
    assert feeding[0.1].single == pytest.approx(100)
    assert feeding[0.1].parcels == pytest.approx(200)
    assert feeding[1.0].single == feeding[1.0].parcels == pytest.approx(1000)


# The report.


def test_the_worst_figure_decides() -> None:
    figures = Figures(
        efficiencies=[
            efficiency(32, 0.2, EQUAL, 0.96),
            efficiency(32, 0.05, EQUAL, 0.8),
            efficiency(8, 0.2, UNEQUAL, 0.95),
            efficiency(32, 0.2, UNEQUAL, 0.89),
            efficiency(64, 0.2, UNEQUAL, 0.1),  # more than is asked for
            efficiency(8, 0.2, KILLS, 0.9),
        ],
        overheads=[Overhead("in-process", 0.01, 0.0, 200), Overhead("1 actor", 0.014, 0.004, 200)],
        many_rows=[ManyRows(replace(RUN, rows=1_000_000), 8.0, 15.3)],
    )
    claims = all_claims(figures)
    assert [claim.verdict for claim in claims] == ["ok", "SHORT", "SHORT", "ok", "ok", "ok"]
    assert claims[2].measured == "0.890"


def test_what_was_not_measured_is_not_judged() -> None:
    smaller = Figures(many_rows=[ManyRows(RUN, None, 0.1)])
    assert {claim.verdict for claim in all_claims(smaller)} == {"-"}


def test_json_holds_everything(tmp_path: Path) -> None:
    figures = Figures(efficiencies=[efficiency(32, 0.2, EQUAL, 0.96)], start_seconds={32: 20.0})
    write_json(tmp_path / "scale.json", figures, all_claims(figures), {"machine": "a"})
    content = json.loads((tmp_path / "scale.json").read_text())
    assert content["figures"]["efficiencies"][0]["run"]["ready_seconds"] == 16.0
    assert content["must_hold"][0]["verdict"] == "ok"
    assert content["about"] == {"machine": "a"}


# The command line.


def test_default_plan() -> None:
    plan = parse_plan([])
    assert plan.actors == (1, 2, 4, 8, 16, 32, 64)
    assert plan.latencies == (0.001, 0.01, 0.05, 0.2)
    assert plan.driver_actors == (1, 4, 16, 64)
    assert (plan.kill_actors, plan.kill_latencies) == (8, (0.05, 0.2))
    assert plan.repetitions >= 200
    assert plan.samples * 100 == 1_000_000


def test_options() -> None:
    plan = parse_plan(
        ["--actors", "8", "2", "--latencies", "50", "0.5", "--seconds", "9"]
        + ["--rounds", "3", "--out", "a/b"]
    )
    assert plan.actors == (2, 8)
    assert plan.latencies == (0.0005, 0.05)
    assert plan.seconds == 9
    assert plan.rounds == 3
    assert plan.folder == Path("a/b")


@pytest.mark.parametrize("wrong", ["--actors 0", "--latencies -1", "--seconds nan"])
def test_wrong_options(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_plan(wrong.split())
    assert "must be" in capsys.readouterr().err


# The whole program.


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(500)  # half a minute on a machine that has nothing else to do
def test_quick_run(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    # A Ray of this test session would be used instead of a local one.
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "scripts/benchmark_scale.py", "--quick", "--out", str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=480,
    )
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "scale.json").read_text())
    efficiencies = content["figures"]["efficiencies"]
    assert {each["speeds"] for each in efficiencies} == {EQUAL, UNEQUAL, KILLS}
    assert all(0 < each["value"] < 1.05 for each in efficiencies)  # more is measured wrong
    assert sum(each["kills"] for each in efficiencies) >= 1
    assert {cost["announced"] for cost in content["figures"]["costs"]} == {0.01, 0.1, 1.0}
    assert content["figures"]["many_rows"][0]["run"]["rows"] > 0
    assert [each["where"] for each in content["figures"]["overheads"]] == [
        "in-process",
        "1 actor",
        "2 actors",
    ]
    assert {claim["verdict"] for claim in content["must_hold"]} <= {"ok", "SHORT", "-"}
    assert "Must hold" in done.stdout
    assert "(raylet)" not in done.stdout  # processes that are expected, and killed ones
    assert (tmp_path / "scale.png").read_bytes().startswith(b"\x89PNG")
