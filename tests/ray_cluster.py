"""A Ray cluster of three nodes on this machine, the first without room for cells; see test_workers.

Says its address and the process of each other node's raylet, as one line of JSON. A number of such a process on its
standard input has the node killed; the cluster ends with its standard input.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from ray.cluster_utils import Cluster

SOON = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_timeout_ms": 5000}
"""When a lost node is noticed."""


def started() -> tuple[Cluster, dict[int, Any]]:
    """The cluster, and its two nodes with room for one cell each, by the process of their raylet."""
    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=0, include_dashboard=False, _system_config=SOON)
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    except Exception:
        cluster.shutdown()
        raise
    return cluster, {node.all_processes["raylet"][0].process.pid: node for node in nodes}


def main() -> None:
    for last in (False, False, True):
        try:
            cluster, nodes = started()
            break
        except Exception:  # Ray gives a node 30 seconds to start, which a busy machine may exceed
            if last:
                raise
    print(json.dumps({"address": cluster.address, "raylets": list(nodes)}), flush=True)
    for line in sys.stdin:
        cluster.remove_node(nodes[int(line)], allow_graceful=False)  # all its processes, and buries them
    cluster.shutdown()


if __name__ == "__main__":
    main()
