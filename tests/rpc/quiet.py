"""Runs a scene of real sockets, and sees to it that nothing is left of it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Coroutine
from typing import Any

# A scene waits for events; this is when it is given up.
WAIT_S = 60.0


def run_quietly(scene: Coroutine[Any, Any, None]) -> None:
    """Runs a scene; fails if it leaves tasks behind, or anything that asyncio complains about."""
    complaints: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        async with asyncio.timeout(WAIT_S):
            await scene
            while others := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(others)
        gc.collect()

    asyncio.run(main())
    gc.collect()
    assert complaints == []
