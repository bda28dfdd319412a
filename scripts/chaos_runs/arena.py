"""The arena: a Ray cluster of several nodes on this machine that nobody else uses."""

from __future__ import annotations

import signal
from types import TracebackType
from typing import Any

import ray
from ray._private.ray_constants import PROCESS_TYPE_RAYLET
from ray.cluster_utils import Cluster

from chaos_runs.processes import descendants

_STORE_BYTES = 80 << 20
_STARTS = 3
_HEALTH = {  # a node's death is seen within 2 s, not 12
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}


class Arena:
    """A head without CPUs, for the driver, and nodes for actors, which come and go.

    Args:
        cpus: CPUs of each node.
    """

    def __init__(self, cpus: int) -> None:
        self._cpus = cpus
        self._cluster: Any = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "object_store_memory": _STORE_BYTES,
                "include_dashboard": False,
                "_system_config": _HEALTH,
            },
        )
        self._nodes: list[Any] = []
        ray.init(
            address=self._cluster.address,
            namespace="qailab",
            log_to_driver=False,
            logging_level="ERROR",
        )

    @property
    def nodes(self) -> int:
        """How many nodes there are beside the head."""
        return len(self._nodes)

    def join(self) -> None:
        """Add a node. On a busy machine one may need more than the 30 s that Ray allows it."""
        for left in reversed(range(_STARTS)):
            try:
                node = self._cluster.add_node(num_cpus=self._cpus, object_store_memory=_STORE_BYTES)
            except Exception:  # Ray's word for it; it has ended the node
                if not left:
                    raise
            else:
                self._nodes.append(node)
                return

    def remove(self, number: int) -> None:
        """Kill a node and all its processes: this number modulo how many there are.

        Most would end by themselves when they miss it; one that is stopped cannot.
        """
        node = self._nodes.pop(number % len(self._nodes))
        raylets = node.all_processes[PROCESS_TYPE_RAYLET]
        processes = [each for raylet in raylets for each in descendants(raylet.process.pid)]
        self._cluster.remove_node(node, allow_graceful=False)
        for process in processes:
            process.send(signal.SIGKILL)

    def set_nodes(self, count: int) -> None:
        """Add or remove nodes until there are so many."""
        while self.nodes < count:
            self.join()
        while self.nodes > count:
            self.remove(0)

    def close(self) -> None:
        """End the cluster."""
        ray.shutdown()
        self._cluster.shutdown()

    def __enter__(self) -> Arena:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
