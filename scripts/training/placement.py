"""``--placement``: the one switch that says where actors are, and what each takes of its node.

Plain values until Ray's nodes are known: then `actor_options` makes Ray's options of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from qailab.errors import InputError
from training.settings import BackendKind

Strategy = Literal["spread", "pack"]


@dataclass(frozen=True)
class Placement:
    """Where actors are; None is for what was not given.

    Args:
        actors_per_node: actors with simulators on each node that has room for one.
        cpus: CPUs that an actor takes.
        gpus: the share of a GPU that an actor takes; its simulator runs there.
        sessions_per_qpu: actors, each with a session of its own, for each device.
        worker_cpus: CPUs that a training worker takes.
        worker_gpus: GPUs that a training worker takes; it trains there, with nccl.
        strategy: whether actors and workers are spread over the nodes, or fill one after another.

    Raises:
        InputError: if a value is out of its range.
    """

    actors_per_node: int | None = None
    cpus: float | None = None
    gpus: float | None = None
    sessions_per_qpu: int | None = None
    worker_cpus: float | None = None
    worker_gpus: float | None = None
    strategy: Strategy | None = None

    def __post_init__(self) -> None:
        for name in ("actors_per_node", "sessions_per_qpu"):
            _check(name, getattr(self, name), "at least 1", lambda value: value >= 1)
        for name in ("cpus", "gpus", "worker_gpus"):
            # Ray shares one GPU among actors, and takes more than one only whole.
            _check(
                name,
                getattr(self, name),
                "a finite number, not below 0" + ("" if name == "cpus" else "; whole above 1"),
                lambda value, name=name: (
                    0 <= value < math.inf and (name == "cpus" or value <= 1 or value % 1 == 0)
                ),
            )
        # Ray Train refuses workers that take nothing.
        _check("worker_cpus", self.worker_cpus, "above 0", lambda value: 0 < value < math.inf)
        if self.strategy is not None and self.strategy not in get_args(Strategy):
            raise InputError(
                f"--placement strategy must be {' or '.join(get_args(Strategy))}, got "
                f"{self.strategy!r}"
            )

    @classmethod
    def parse(cls, text: str) -> Placement:
        """Read ``key=value,key=value``.

        Raises:
            InputError: if it is not that, names an unknown key or one twice, or a value is wrong.
        """
        values: dict[str, Any] = {}
        for part in filter(None, (each.strip() for each in text.split(","))):
            key, found, value = (each.strip() for each in part.partition("="))
            name = key.replace("-", "_")
            if not found or not value:
                raise InputError(f"--placement must be KEY=VALUE,KEY=VALUE, got {part!r}")
            if name not in _KINDS:
                known = ", ".join(each.replace("_", "-") for each in _KINDS)
                raise InputError(f"--placement has no {key!r}; it has {known}")
            if name in values:
                raise InputError(f"--placement has {key} twice")
            try:
                values[name] = _KINDS[name](value)
            except ValueError:
                what = "a whole number" if _KINDS[name] is int else "a number"
                raise InputError(f"--placement {key} must be {what}, got {value!r}") from None
        return cls(**values)

    @staticmethod
    def help() -> str:
        """What the option is for."""
        return (
            "where actors are and what each takes, such as actors-per-node=4,cpus=0.5: "
            "actors-per-node (on every node with room; instead of --actors), cpus and gpus of an "
            "actor (gpus=0.25: four share one), sessions-per-qpu (with --backend ibm), worker-cpus "
            "and worker-gpus of each of --workers (default 1 and 0), strategy=spread or pack"
        )

    def __str__(self) -> str:
        given = {name: getattr(self, name) for name in _KINDS}
        return ",".join(
            f"{name.replace('_', '-')}={value:g}" if isinstance(value, float) else
            f"{name.replace('_', '-')}={value}"
            for name, value in given.items()
            if value is not None
        )  # fmt: skip

    def check_backend(self, kind: BackendKind) -> None:
        """Check that it is for this kind of backend.

        Raises:
            InputError: if a part of it is for another kind.
        """
        if kind == "ibm":
            for name in ("actors_per_node", "gpus", "worker_cpus", "worker_gpus"):
                if getattr(self, name) is not None:
                    raise InputError(
                        f"--placement {name.replace('_', '-')} is for simulators; actors of "
                        "devices go to the nodes that offer qpu_session"
                    )
        elif self.sessions_per_qpu is not None:
            raise InputError(
                f"--placement sessions-per-qpu is for --backend ibm, and the backend is {kind}"
            )

    @property
    def device(self) -> Literal["CPU", "GPU"]:
        """What simulators run on."""
        return "GPU" if self.gpus else "CPU"

    @property
    def worker_resources(self) -> dict[str, float]:
        """What a training worker takes, in Ray's words."""
        gpus = {"GPU": self.worker_gpus} if self.worker_gpus else {}
        return {"CPU": 1.0 if self.worker_cpus is None else self.worker_cpus, **gpus}

    def waiting(self, workers: int, free: Mapping[str, float], total: Mapping[str, float]) -> str:
        """What so many workers wait for, in words.

        Args:
            workers: how many.
            free: what the cluster has free of each resource.
            total: what it has.
        """
        needs = self.worker_resources
        short = [name for name, each in needs.items() if free.get(name, 0.0) < each * workers]
        there = ", ".join(
            f"{free.get(name, 0.0):g} {name} of {total.get(name, 0.0):g} free" for name in needs
        )
        lacking = (
            f"too few {' and '.join(short)}" if short else "but perhaps on no node all of them"
        )
        smaller = " or ".join(
            f"worker-{name.lower()}s or {name.lower()}s" for name in short or needs
        )
        return (
            f"{workers} of {_words(needs)} each are waited for, and the cluster has {there}: "
            f"{lacking}. If no more come: fewer --workers, or smaller {smaller} of --placement"
        )

    @property
    def common(self) -> dict[str, Any]:
        """Ray's options that all actors have."""
        given = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        options: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
        if self.strategy is not None:
            options["scheduling_strategy"] = "SPREAD" if self.strategy == "spread" else "DEFAULT"
        return options

    def cpus_for(self, actors: int, each: float, workers: int = 0) -> float:
        """CPUs that a Ray of this machine alone must have.

        Args:
            actors: how many there are, where ``actors-per-node`` does not say it.
            each: CPUs of an actor, where ``cpus`` does not say it.
            workers: training workers.
        """
        number = actors if self.actors_per_node is None else self.actors_per_node
        own = each if self.cpus is None else self.cpus
        return number * own + workers * self.worker_resources["CPU"]

    def actor_options(
        self, nodes: Sequence[Mapping[str, Any]], actors: int, each: float
    ) -> list[dict[str, Any]]:
        """Ray's options for each actor.

        Args:
            nodes: Ray's nodes, as ``ray.nodes()`` has them.
            actors: how many there are, where ``actors-per-node`` does not say it.
            each: CPUs of an actor, where ``cpus`` does not say it.

        Raises:
            InputError: if no node has room for an actor, or one has not for all of its own.
        """
        if self.actors_per_node is None:
            return [dict(self.common)] * actors
        needs = {"CPU": each if self.cpus is None else self.cpus, "GPU": self.gpus or 0.0}
        alive = [node for node in nodes if node["Alive"]]
        usable = [node for node in alive if _room(node, needs) >= 1]
        if not usable:
            raise InputError(
                f"none of {len(alive)} nodes has {_words(needs)} for an actor; give --placement "
                "smaller cpus or gpus"
            )
        for node in usable:
            if _room(node, needs) < self.actors_per_node:
                raise InputError(
                    f"--placement actors-per-node={self.actors_per_node}: the node "
                    f"{node['NodeManagerAddress']} has room for {_room(node, needs):.0f} actors "
                    f"of {_words(needs)}; give fewer, or smaller cpus or gpus"
                )
        if self.strategy is not None:
            return [dict(self.common)] * (self.actors_per_node * len(usable))
        return [
            self.common | {"scheduling_strategy": _on(node["NodeID"])}
            for node in usable
            for _ in range(self.actors_per_node)
        ]


_KINDS: dict[str, Any] = {
    "actors_per_node": int,
    "cpus": float,
    "gpus": float,
    "sessions_per_qpu": int,
    "worker_cpus": float,
    "worker_gpus": float,
    "strategy": str,
}


def _check(name: str, value: float | None, expected: str, fits: Any) -> None:
    if value is not None and not fits(value):
        raise InputError(f"--placement {name.replace('_', '-')} must be {expected}; got {value:g}")


def _room(node: Mapping[str, Any], needs: Mapping[str, float]) -> float:
    """How many actors a node has room for, if nothing else is there."""
    parts = [node["Resources"].get(k, 0.0) / amount for k, amount in needs.items() if amount]
    return math.floor(min(parts, default=math.inf)) if parts else math.inf


def _words(needs: Mapping[str, float]) -> str:
    return " and ".join(f"{v:g} {k}" for k, v in needs.items() if v) or "nothing"


def _on(node: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Soft: when the node is gone, its actors are replaced elsewhere.
    return NodeAffinitySchedulingStrategy(node, soft=True)
