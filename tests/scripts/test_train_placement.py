"""``--placement``: what is read, what is refused, and what becomes of it."""

from __future__ import annotations

from typing import Any

import pytest
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from training.options import parse
from training.placement import Placement

from qailab.errors import InputError


def node(name: str, cpus: float, gpus: float = 0.0, *, alive: bool = True) -> dict[str, Any]:
    """A node as ``ray.nodes()`` has it."""
    resources = {k: v for k, v in (("CPU", cpus), ("GPU", gpus)) if v}
    number = name.encode().hex().ljust(56, "0")
    return {"NodeID": number, "Alive": alive, "NodeManagerAddress": name, "Resources": resources}


def test_every_key_is_read_and_given_again() -> None:
    text = (
        "actors-per-node=4,cpus=0.5,gpus=0.25,sessions-per-qpu=2,worker-cpus=1.5,worker-gpus=1,"
        "strategy=spread"
    )
    placement = Placement.parse(text)
    assert placement == Placement(4, 0.5, 0.25, 2, 1.5, 1.0, "spread")
    assert str(placement) == text
    assert Placement.parse(" cpus = 2 , ") == Placement(cpus=2.0)
    assert str(Placement.parse("")) == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cpus", "must be KEY=VALUE,KEY=VALUE, got 'cpus'"),
        ("cpus=", "must be KEY=VALUE,KEY=VALUE, got 'cpus='"),
        ("cores=2", "has no 'cores'; it has actors-per-node, cpus, gpus, sessions-per-qpu"),
        ("cpus=1,cpus=2", "has cpus twice"),
        ("cpus=one", "cpus must be a number, got 'one'"),
        ("actors-per-node=1.5", "actors-per-node must be a whole number, got '1.5'"),
        ("actors-per-node=0", "actors-per-node must be at least 1; got 0"),
        ("sessions-per-qpu=-1", "sessions-per-qpu must be at least 1; got -1"),
        ("cpus=-1", "cpus must be a finite number, not below 0; got -1"),
        ("cpus=nan", "cpus must be a finite number, not below 0; got nan"),
        ("gpus=1.5", "gpus must be a finite number, not below 0; whole above 1; got 1.5"),
        ("worker-cpus=0", "worker-cpus must be above 0; got 0"),
        ("strategy=nearby", "strategy must be spread or pack, got 'nearby'"),
    ],
)
def test_what_it_cannot_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=f"--placement {message}"):
        Placement.parse(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--placement=actors-per-node=2", "--actors=3"], "either --actors or --placement actors"),
        (["--placement=sessions-per-qpu=2"], "sessions-per-qpu is for --backend ibm"),
        (["--backend=ibm", "--placement=actors-per-node=2"], "actors-per-node is for simulators"),
        (["--backend=ibm", "--placement=gpus=1"], "gpus is for simulators"),
        (["--backend=ibm", "--workers=2"], "--workers is for simulators"),
        (["--backend=ibm", "--shots=exact"], "--shots exact is for simulators"),
        (["--workers=0"], "--workers must be at least 1, got 0"),
        (["--pool=per-worker"], "--pool per-worker is for --workers of at least 2"),
        (["--workers=3", "--pool=per-worker", "--actors=2"], "an actor for each of 3 workers"),
        (["--storage=here"], "--storage needs --name"),
        (["--storage=here", "--resume=runs/a"], "must be the run's name with --storage"),
        (["--storage=s3://me:pass@host/a", "--name=a"], "must not hold a user or password"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(arguments, "")


def test_where_to_run_is_said_again_to_resume() -> None:
    options = parse(
        ["--workers=2", "--pool=per-worker", "--placement=cpus=0.5", "--name=a", "--storage=s"], ""
    )
    assert options.place == (
        "--workers", "2", "--pool", "per-worker", "--placement", "cpus=0.5", "--storage", "s",
    )  # fmt: skip


def test_a_number_of_actors_has_common_options() -> None:
    assert Placement().actor_options((), 2, 1.0) == [{}, {}]
    spread = Placement.parse("cpus=0.5,gpus=0.25,strategy=spread")
    one = {"num_cpus": 0.5, "num_gpus": 0.25, "scheduling_strategy": "SPREAD"}
    assert spread.actor_options((), 2, 1.0) == [one, one]
    assert spread.device == "GPU"
    assert spread.cpus_for(3, 1.0, workers=2) == 3 * 0.5 + 2


def test_actors_per_node_go_to_the_nodes_that_have_room() -> None:
    nodes = [node("head", 0), node("a", 2), node("gone", 8, alive=False), node("b", 4)]
    placement = Placement.parse("actors-per-node=2")
    options = placement.actor_options(nodes, 1, 1.0)
    strategies = [each["scheduling_strategy"] for each in options]
    assert all(isinstance(s, NodeAffinitySchedulingStrategy) and s.soft for s in strategies)
    assert [bytes.fromhex(s.node_id)[:1] for s in strategies] == [b"a", b"a", b"b", b"b"]
    spread = Placement.parse("actors-per-node=2,strategy=spread").actor_options(nodes, 1, 1.0)
    assert spread == [{"scheduling_strategy": "SPREAD"}] * 4


def test_too_many_actors_for_a_node_are_refused_with_the_numbers() -> None:
    nodes = [node("a", 2), node("b", 4, gpus=1)]
    with pytest.raises(InputError, match="node a has room for 2 actors of 1 CPU; give fewer"):
        Placement.parse("actors-per-node=3").actor_options(nodes, 1, 1.0)
    with pytest.raises(InputError, match="none of 2 nodes has 8 CPU for an actor"):
        Placement.parse("actors-per-node=1,cpus=8").actor_options(nodes, 1, 1.0)
    shared = Placement.parse("actors-per-node=4,cpus=0,gpus=0.25").actor_options(nodes, 1, 1.0)
    assert len(shared) == 4  # of one GPU, on the only node that has one


@pytest.mark.parametrize(
    ("placement", "free", "lacking", "smaller"),
    [
        ("", {"CPU": 1.5}, "1.5 CPU of 4 free: too few CPU", "worker-cpus or cpus"),
        (
            "worker-gpus=1",
            {"CPU": 3.0},
            "3 CPU of 4 free, 0 GPU of 1 free: too few GPU",
            "worker-gpus or gpus",
        ),
        ("worker-cpus=2", {"CPU": 4.0}, "perhaps on no node all of them", "worker-cpus or cpus"),
    ],
)
def test_what_workers_wait_for_is_named(
    placement: str, free: dict[str, float], lacking: str, smaller: str
) -> None:
    message = Placement.parse(placement).waiting(2, free, {"CPU": 4.0, "GPU": 1.0})
    assert lacking in message
    assert message.endswith(f"fewer --workers, or smaller {smaller} of --placement")
