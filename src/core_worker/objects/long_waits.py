"""What people are told while their program waits in get or wait for long: why, if nothing that runs will end
it.

    wait ──wait_warning_s──► explain ──stuck──► one line; again after twice as long

Drivers look, not workers: of what a driver waits for, thousands of tasks may wait in turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

from ray_mono.common.explanation import Explanation
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.job_warnings import JobWarnings
from ray_mono.core_worker.store_provider.memory_store import MemoryStore


class LongWaits:
    """Of one process."""

    def __init__(
        self,
        env: Environment,
        memory_store: MemoryStore,
        warnings: JobWarnings,
        explain: Callable[[str, bytes], Explanation],
    ) -> None:
        """explain: see CoreInterface."""
        self._env = env
        self._memory_store = memory_store
        self._warnings = warnings
        self._explain = explain
        self.first_s = env.config.wait_warning_s if env.is_driver else math.inf
        """How long a wait lasts before it is looked at."""

    def wait(
        self,
        wait: Callable[[float | None], bool],
        object_ids: Collection[bytes],
        timeout_s: float | None,
        has_begun: bool = False,
    ) -> bool:
        """wait(timeout_s), which says whether these came. On the thread that waits, without the lock.
        has_begun: it has waited for first_s."""
        clock = self._env.clock
        deadline_s = math.inf if timeout_s is None else clock.time_s() + timeout_s
        pause_s = self.first_s
        if has_begun:
            self._look(object_ids, pause_s)
            pause_s *= 2
        while pause_s < (left_s := deadline_s - clock.time_s()):
            if wait(pause_s):
                return True
            if self._env.reactor.is_closed:
                return False
            self._look(object_ids, pause_s)
            pause_s *= 2
        return wait(None if left_s == math.inf else max(0.0, left_s))

    def _look(self, object_ids: Collection[bytes], waited_s: float) -> None:
        with self._env.lock:
            missing = [each for each in object_ids if self._memory_store.is_pending(each)]
        if not missing:
            return
        explanation = self._explain("object", missing[0])
        if explanation.is_stuck:
            others = f" (one of {len(missing)} that are missing)" if len(missing) > 1 else ""
            self._warnings.tell("long_wait", f"Waiting for more than {waited_s:g} s{others}: {explanation}")
