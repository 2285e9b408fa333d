"""A worker that ends while something that it started lives on with its sockets."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path

from tests.raylet.node_processes import Cluster, driver_of, run


def test_what_a_worker_asked_for_ends_with_it_although_its_child_holds_its_sockets(
    session_base: Path,
) -> None:
    with ExitStack() as stack:
        cluster = Cluster(session_base, stack)
        raylet = cluster.raylet("a", {"CPU": 2})

        async def test() -> None:
            async with driver_of(cluster, raylet) as driver:
                grant = await driver.lease()
                # Never answered: the child holds that connection as well.
                pushed = asyncio.ensure_future(driver.push(grant, "leave_child"))
                await driver.lease({"CPU": 2})
                pushed.cancel()

        run(test())
