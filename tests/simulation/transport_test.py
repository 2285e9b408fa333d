"""SimTransport passes the conformance scenes that the framed transport passes, on both kinds of address."""

from __future__ import annotations

import gc
import random

from tests.rpc.transport_conformance import Scene, TransportConformance
from tests.simulation.loop import new_loop
from tests.simulation.network import NetworkKnobs, SimNetwork
from tests.simulation.trace import Trace
from tests.simulation.transport import SimTransport

LIMIT_S = 60.0


def run_simulated(scene: Scene, address: str) -> None:
    """Runs a scene in one process on one host; fails if it leaves tasks behind, or errors that nobody saw."""
    loop = new_loop()
    network = SimNetwork(loop, random.Random(0), Trace(), NetworkKnobs())
    network.add_host("host")
    process = network.start_process("host", "both ends")
    transport = SimTransport(network, process, "a secret")
    try:
        loop.run_until_complete(process.spawn(scene(transport, address)), LIMIT_S)
        loop.run_until_idle(LIMIT_S)
        assert loop.pending_tasks() == []
        gc.collect()
        assert loop.errors == []
    finally:
        loop.end()


class TestSimulatedUnix(TransportConformance):
    def run(self, scene: Scene) -> None:
        run_simulated(scene, "unix:/a/socket")


class TestSimulatedTcp(TransportConformance):
    def run(self, scene: Scene) -> None:
        run_simulated(scene, "127.0.0.1:0")
