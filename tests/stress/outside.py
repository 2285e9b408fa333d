"""What a cluster's parts hold, seen from outside: asked on their sockets (DumpState, GetStats) and read from
/proc."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from ray_mono._private.node.session import NodeRecord
from ray_mono.protobuf import common_pb2
from ray_mono.protobuf.core_worker_rpc import CoreWorkerServiceAsyncStub
from ray_mono.protobuf.gcs_rpc import GcsServiceAsyncStub
from ray_mono.protobuf.raylet_rpc import RayletServiceAsyncStub
from ray_mono.rpc.framed import FramedTransport
from tests.integration.clusters import ask_store

CALL_TIMEOUT_S = 30.0
POLL_S = 0.1
STACKS_SIGNAL = signal.SIGUSR2
"""Drivers and their workers write their stacks to standard error."""


def dump_state(stub: Callable[[Any], Any], socket_path: str) -> dict[str, Any]:
    """DumpState of the service at a Unix socket."""

    async def ask() -> dict[str, Any]:
        channel = await FramedTransport("").connect(f"unix:{socket_path}", CALL_TIMEOUT_S)
        try:
            reply = await stub(channel).DumpState(common_pb2.Empty(), timeout_s=CALL_TIMEOUT_S)
        finally:
            channel.close()
        state: dict[str, Any] = json.loads(reply.json)
        return state

    return asyncio.run(ask())


@dataclass(frozen=True)
class Memory:
    """Of the service processes, by name; bytes of their own, without what they share."""

    by_service: dict[str, int]
    num_dead_actors: int
    """Rows that the GCS keeps for those who ask later, up to a limit of its own."""

    def growth(self, earlier: Memory) -> dict[str, int]:
        return {name: size - earlier.by_service.get(name, 0) for name, size in self.by_service.items()}


class Outside:
    """One node's cluster."""

    def __init__(self, head: NodeRecord) -> None:
        self._head = head
        self._session = Path(head.session_dir)
        self._services = {name: int(service["pid"]) for name, service in head.services.items()}
        self._services["reaper"] = head.reaper_pid

    def raylet(self) -> dict[str, Any]:
        return dump_state(RayletServiceAsyncStub, self._head.raylet_socket)

    def gcs(self) -> dict[str, Any]:
        return dump_state(GcsServiceAsyncStub, str(self._session / "sockets" / "gcs"))

    def story(self) -> str:
        """For whoever looks for the reason of a failure: the raylet's state, and that of the workers which
        run tasks. Their stacks go to their logs.
        """
        try:
            raylet = self.raylet()
        except Exception as error:  # it may be what failed
            return f"the raylet of the first node does not say what it does: {error!r}"
        told = {"raylet": raylet}
        for worker in raylet["workers"]:
            if worker["state"] in ("leased", "ending"):
                with contextlib.suppress(Exception):  # it may be the one that does not answer
                    os.kill(worker["pid"], STACKS_SIGNAL)
                    path = self._session / "sockets" / f"worker-{worker['worker_id'][:16]}"
                    told[f"worker {worker['pid']}"] = dump_state(CoreWorkerServiceAsyncStub, str(path))
        return json.dumps(told)

    def memory(self) -> Memory:
        dead = self.gcs()["actors"]["count_by_state"].get("DEAD", 0)
        return Memory({name: anonymous_bytes(pid) for name, pid in self._services.items()}, dead)

    def held(self) -> dict[str, Any]:
        """What drivers that let go of everything must not hold any more; empty where they do not."""
        raylet, store = self.raylet(), ask_store(self._head.store_socket)
        resources = raylet["resources"]
        found = {
            "objects": store.num_objects,
            "unsealed objects": store.num_unsealed,
            "pins": store.num_pins,
            "bytes of the store": store.used_bytes,
            "waiting creates": store.num_waiting_creates,
            "pulls": store.num_pulls_active,
            "leases": [lease for lease in raylet["leases"] if lease["holds"] or lease["state"] == "queued"],
            "busy workers": [worker for worker in raylet["workers"] if worker["state"] != "idle"],
            "missing resources": {
                name: amount - resources["available"].get(name, 0)
                for name, amount in resources["total"].items()
                if amount != resources["available"].get(name, 0)
            },
            "overdrawn": resources["is_overdrawn"],
            "living actors": self.gcs()["actors"]["living"],
        }
        return {name: what for name, what in found.items() if what}

    def counts(self) -> dict[str, int]:
        """What must be back at its number once the drivers are gone."""
        gcs = self.gcs()
        reaper = psutil.Process(self._head.reaper_pid)
        counts = {
            "processes": len(reaper.children(recursive=True)),
            "sockets": len(os.listdir(self._session / "sockets")),
            "running jobs": len(gcs["jobs"]["running"]),
            "subscribers": len(gcs["subscribers"]),
            "watchers": gcs["actors"]["watchers"],
            "workers of the raylet": len(self.raylet()["workers"]),
        }
        for name, pid in self._services.items():
            counts[f"descriptors of {name}"] = len(os.listdir(f"/proc/{pid}/fd"))
        return counts


def left_after_settling(left: Callable[[], Any], timeout_s: float) -> Any:
    """Waits until left() is empty; what it is still after timeout_s."""
    deadline_s = time.monotonic() + timeout_s
    while (found := left()) and time.monotonic() < deadline_s:
        time.sleep(POLL_S)
    return found


def anonymous_bytes(pid: int) -> int:
    """Memory that is a process's own: no file's, and not the store's. 0 where it has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) << 10
    return 0
