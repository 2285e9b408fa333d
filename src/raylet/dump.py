"""A raylet's state for people: what DumpState answers and SIGUSR1 writes to the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray_mono.raylet.raylet import Raylet

LEASES_SHOWN_MAX = 1000
"""A queue of a hundred thousand leases would make a message that nobody reads."""


def dump_raylet(raylet: Raylet) -> dict[str, Any]:
    now_s = raylet.clock.time_s()
    leases = raylet.leases.leases()
    return {
        "node_id": raylet.config.node_id.hex(),
        "addresses": raylet.addresses,
        "resources": {
            "total": raylet.ledger.total.to_units(),
            "available": raylet.ledger.available.to_units(),
            "is_overdrawn": raylet.ledger.is_overdrawn,
        },
        "num_leases": len(leases),
        "num_queued": raylet.leases.num_queued,
        "leases": [
            {
                "lease_id": lease.lease_id.hex(),
                "task_name": lease.request.task_name,
                "job_id": lease.request.job_id.hex(),
                "state": lease.state.value,
                "needs": lease.shape.required.to_units(),
                "holds": lease.shape.resources.to_units(),
                "worker_id": lease.worker_id.hex() if lease.worker_id else "",
                "waited_s": round(now_s - lease.queued_at_s, 3),
                "why": raylet.leases.explain(lease),
            }
            for lease in leases[:LEASES_SHOWN_MAX]
        ],
        "workers": [
            {
                "worker_id": worker.worker_id.hex(),
                "pid": worker.pid,
                "state": worker.state.value,
                "for_s": round(now_s - worker.since_s, 3),
                "job_id": worker.binding.job_id.hex() if worker.binding else "",
                "lease_id": worker.lease_id.hex() if worker.lease_id else "",
                "story": worker.story,
            }
            for worker in raylet.pool
        ],
        "drivers": [
            {"worker_id": client.worker_id.hex(), "pid": client.pid, "job_id": client.job_id.hex()}
            for client in raylet.clients
            if client.is_driver
        ],
        "start_trouble": raylet.pool.start_trouble,
        "other_nodes": [
            {
                "node_id": node.node_id.hex(),
                "address": f"{node.host}:{node.port}",
                "is_alive": node.is_alive,
                "total": node.total.to_units(),
                "available": node.available.to_units(),
            }
            for node in raylet.cluster.nodes()
        ],
    }
