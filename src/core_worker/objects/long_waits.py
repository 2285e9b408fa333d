"""What people are told while their program waits in get or wait for long: why, if nothing that runs will end
it.

    wait ──wait_warning_s──► explain ──stuck──► one line; again after twice as long

Drivers look, not workers: of what a driver waits for, thousands of tasks may wait in turn. A get is told of
the first that is stuck, a wait only where too few of the others move.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

from ray_mono.common.explanation import Explanation
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.job_warnings import JobWarnings

LOOKED_AT_MAX = 100
"""Of what is missing."""
LOOK_S = 2.0
"""So long it is looked at, and what is asked then is heard: whoever waits is told no sooner that it came."""


class LongWaits:
    """Of one process."""

    def __init__(
        self,
        env: Environment,
        is_missing: Callable[[bytes], bool],
        warnings: JobWarnings,
        explain: Callable[[str, bytes], Explanation],
    ) -> None:
        """is_missing(object id): it is not there, or not here. Lock held. explain: see CoreInterface."""
        self._env = env
        self._is_missing = is_missing
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
        num_enough: int | None = None,
    ) -> bool:
        """wait(timeout_s), which says whether these came. On the thread that waits, without the lock.
        has_begun: it has waited for first_s. num_enough: so many are; None: all are needed."""
        clock = self._env.clock
        deadline_s = math.inf if timeout_s is None else clock.time_s() + timeout_s
        pause_s = self.first_s
        if has_begun:
            self._look(object_ids, pause_s, num_enough)
            pause_s *= 2
        while pause_s < (left_s := deadline_s - clock.time_s()):
            if wait(pause_s):
                return True
            if self._env.reactor.is_closed:
                return False
            self._look(object_ids, pause_s, num_enough)
            pause_s *= 2
        return wait(None if left_s == math.inf else max(0.0, left_s))

    def _look(self, object_ids: Collection[bytes], waited_s: float, num_enough: int | None) -> None:
        with self._env.lock:
            missing = [each for each in object_ids if self._is_missing(each)]
        num_may_fail = 0 if num_enough is None else len(object_ids) - num_enough
        until_s = self._env.clock.time_s() + LOOK_S
        num_looked_at = min(len(missing), LOOKED_AT_MAX)
        some = "" if num_looked_at == len(missing) else f", of which {num_looked_at} are looked at"
        for object_id in missing[:num_looked_at]:
            if self._env.clock.time_s() > until_s:
                return
            explanation = self._explain("object", object_id)
            num_may_fail -= explanation.is_stuck
            if num_may_fail < 0:
                others = f" (one of {len(missing)} that are missing{some})" if len(missing) > 1 else ""
                text = f"Waiting for more than {waited_s:g} s{others}: {explanation}"
                self._warnings.tell("long_wait", text)
                return
