"""What people are told while their program waits for long: why, if nothing that runs will end it, as far as
anybody knows.

    begins ──wait_warning_s──► explain ──stuck or open──► one line; again after twice as long
           ──Ctrl-C──► explain ──► one line
    ends in vain ──begins again──► a new wait
                 ──a third time──► the second goes on: a program may look again and again

A get, a wait, an `await`: whoever waits is known here meanwhile. One timer is set for all of them. When it is
due, a thread asks, so that nobody's wait takes longer for it.

Drivers look, not workers: of what a driver waits for, thousands of tasks may wait in turn. A get is told of
the first that is stuck, a wait only where too few of the others move.
"""

from __future__ import annotations

import contextlib
import math
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ray_mono.common.explanation import Explanation, Outlook
from ray_mono.common.threads import start
from ray_mono.core_worker.environment import Environment, TimerHandle
from ray_mono.core_worker.job_warnings import JobWarnings

MOVES = Outlook.MOVES
LOOKED_AT_MAX = 100
"""Of what is missing to one wait."""
LOOK_S = 2.0
"""So long is looked at one wait after the other."""
TOLD_MAX = 3
"""So many lines at once. Of waits that end alike one is told."""
IN_VAIN_MAX = 10_000
"""Waits that ended in vain, which may begin again: the latest."""
INTERRUPTED_MAX = 8
"""So much of what is missing is looked at for somebody who has interrupted the wait."""


@dataclass(eq=False, slots=True)
class _Wait:
    kind_name: str
    ids: Sequence[bytes]
    num_enough: int | None
    pause_s: float
    """How long before it is looked at, as of its begin or the look before."""
    looked_at_s: float
    """When it will be."""
    rested_s: float | None = None
    """How long before it began the last one for the same had ended; None where it is the first."""
    ended_s: float = math.inf
    """When it ended in vain. Infinite until then, and negative if it came."""

    def goes_on(self, now_s: float, usual_s: float) -> bool:
        """It ended in vain. Whether who looks now looks again and again: after usual_s at most, or about as
        long as he rested before."""
        return self.rested_s is not None and now_s - self.ended_s <= max(usual_s, 2 * self.rested_s)

    def lasts(self, now_s: float, usual_s: float) -> bool:
        return self.ended_s == math.inf or self.goes_on(now_s, usual_s)


@dataclass(frozen=True)
class _Look:
    """At one wait, or several."""

    wait: _Wait
    """One of them."""
    missing: Sequence[bytes]
    num_may_fail: int
    """So many of them are not needed."""
    waited_s: float


class LongWaits:
    """Of one process."""

    def __init__(
        self,
        env: Environment,
        is_missing: Callable[[bytes], bool],
        is_with_worker: Callable[[bytes], bool],
        warnings: JobWarnings,
        explain: Callable[[str, bytes, bool], Explanation],
    ) -> None:
        """is_missing(object id): it is not there, or not here. is_with_worker(object id): the call that makes
        it is. Lock held for both. explain: see CoreInterface."""
        self._env = env
        self._is_missing = is_missing
        self._is_with_worker = is_with_worker
        self._warnings = warnings
        self._explain = explain
        self.first_s = env.config.wait_warning_s if env.is_driver else math.inf
        """How long a wait lasts before it is looked at."""
        self._open: dict[object, _Wait] = {}
        # By the first of their ids. Ordered, since the first of a dict takes the longer to find the more were
        # before it.
        self._in_vain: OrderedDict[bytes, _Wait] = OrderedDict()
        self._timer: TimerHandle | None = None
        self._timer_s = math.inf
        # When the next look may be.
        self._rested_s = 0.0
        # What was told of late, by how it ends: when, and of which wait.
        self._told: dict[tuple[str, ...], tuple[float, _Wait]] = {}

    # ---- who waits

    def wait(
        self,
        wait: Callable[[float | None], bool],
        ids: Sequence[bytes],
        timeout_s: float | None,
        num_enough: int | None = None,
        kind_name: str = "object",
        waited_s: float = 0.0,
    ) -> bool:
        """wait(timeout_s), which says whether these came. On the thread that waits, without the lock.
        num_enough: so many are; None: all are needed. waited_s: so long it has waited already."""
        if not self._env.is_driver:
            return wait(timeout_s)
        try:
            # The usual wait is short, and nobody needs to know of it.
            first_s = self.first_s - waited_s
            if first_s > 0:
                if timeout_s is None or timeout_s > first_s:
                    left_s = None if timeout_s is None else timeout_s - first_s
                else:
                    first_s, left_s = timeout_s, 0.0
                if wait(None if first_s == math.inf else first_s) or self._env.reactor.is_closed:
                    return True
                timeout_s, waited_s = left_s, waited_s + first_s
            return self._wait_on(wait, ids, timeout_s, num_enough, kind_name, waited_s)
        except KeyboardInterrupt:
            self.interrupted(ids, kind_name)
            raise

    def _wait_on(
        self,
        wait: Callable[[float | None], bool],
        ids: Sequence[bytes],
        timeout_s: float | None,
        num_enough: int | None,
        kind_name: str,
        waited_s: float,
    ) -> bool:
        this, has_come = object(), False
        self.begins(this, ids, num_enough, kind_name, waited_s)
        try:
            has_come = (timeout_s is None or timeout_s > 0) and wait(timeout_s)
        finally:
            with self._env.lock:
                self.ends(this, has_come)
        return has_come

    def begins(
        self,
        key: object,
        ids: Sequence[bytes],
        num_enough: int | None = None,
        kind_name: str = "object",
        waited_s: float = 0.0,
    ) -> None:
        """A wait that no thread need be in, until it ends by this key. The lock may be held, and need not.
        Of those with the same key the first counts."""
        if self.first_s == math.inf or key in self._open:
            return
        now_s = self._env.clock.time_s()
        wait = self._open[key] = self._begun(ids, num_enough, kind_name, now_s - waited_s)
        if wait.looked_at_s > now_s:
            # Known before this looks at the timer: one that is set is due early enough, or looks at this too.
            self._look_at(wait.looked_at_s)
        else:
            with self._env.lock:
                self._look()  # by the time of a timer it may have ended again

    def _begun(self, ids: Sequence[bytes], num_enough: int | None, kind_name: str, began_s: float) -> _Wait:
        first_s = self.first_s
        wait = self._in_vain.pop(ids[0], None)
        if wait is None:
            return _Wait(kind_name, ids, num_enough, first_s, began_s + first_s)
        if not wait.goes_on(began_s, first_s):
            wait.pause_s, wait.looked_at_s = first_s, began_s + first_s
        wait.ids, wait.num_enough, wait.rested_s = ids, num_enough, began_s - wait.ended_s
        wait.ended_s = math.inf
        return wait

    def ends(self, key: object, has_come: bool) -> None:
        """Lock held, if it has not come."""
        wait = self._open.pop(key, None)
        if wait is None:
            return
        if has_come:
            wait.ended_s = -math.inf
        else:
            self._ends_in_vain(wait, self._env.clock.time_s())

    def _ends_in_vain(self, wait: _Wait, now_s: float) -> None:
        self._in_vain[wait.ids[0]] = wait
        wait.ids, wait.ended_s = wait.ids if len(wait.ids) == 1 else (), now_s
        if len(self._in_vain) > IN_VAIN_MAX:
            self._in_vain.popitem(last=False)

    def looked_in_vain(self, ids: Sequence[bytes], num_enough: int) -> None:
        """A wait that took no time. Lock held."""
        if self.first_s == math.inf:
            return
        now_s = self._env.clock.time_s()
        wait = self._begun(ids, num_enough, "object", now_s)
        if wait.looked_at_s <= now_s:
            self._open[wait] = wait
            self._look()
            del self._open[wait]
        self._ends_in_vain(wait, now_s)

    # ---- what they are told

    def interrupted(self, ids: Sequence[bytes], kind_name: str = "object") -> None:
        """A person who interrupts a wait of a driver's wants to know what it waited for. Without the lock."""
        if not self._env.is_driver:
            return
        try:
            with self._env.lock:
                missing = self._missing(kind_name, ids)
            why = None
            for each in missing[:INTERRUPTED_MAX]:
                found = self._explain(kind_name, each, False)
                why = why or found
                if found.outlook is not MOVES:
                    why = found
                    break
            if why is not None:
                print(f"(ray_mono) Interrupted while it waited: {why}", file=sys.stderr, flush=True)
        except Exception as failure:  # the interrupt is what counts
            text = f"(ray_mono) Interrupted while it waited, and cannot say why: {failure}"
            print(text, file=sys.stderr, flush=True)

    def _missing(self, kind_name: str, ids: Sequence[bytes]) -> list[bytes]:
        """Those first that are not with workers: what is runs in most cases, and does not keep the wait from
        its end. Lock held."""
        if kind_name != "object":
            return list(ids)
        return sorted(filter(self._is_missing, ids), key=self._is_with_worker)

    def _look_at(self, time_s: float) -> None:
        """At this time, or when there has been a rest."""
        if max(time_s, self._rested_s) >= self._timer_s:
            return
        with self._env.lock:
            time_s = max(time_s, self._rested_s)
            if time_s >= self._timer_s:
                return
            if self._timer is not None:
                self._timer.cancel()
            self._timer_s = time_s
            self._timer = self._env.reactor.call_later(time_s - self._env.clock.time_s(), self._timer_is_due)

    def _timer_is_due(self) -> None:
        self._timer, self._timer_s = None, math.inf
        self._look()

    def _look(self) -> None:
        """At those that have waited for long. Lock held."""
        now_s = self._env.clock.time_s()
        if now_s >= self._rested_s:
            looks = [self._begin_look([each], now_s) for each in self._waits() if each.looked_at_s <= now_s]
            if looks:
                if polled := self._polled(now_s):
                    looks.append(self._begin_look(polled, now_s))
                self._rested_s = now_s + self.first_s
                # Where there is no thread left, nothing can be told.
                with contextlib.suppress(OSError):
                    name = "ray_mono-long-waits"
                    start(threading.Thread(target=self._tell, args=(looks, now_s), name=name, daemon=True))
        if waits := self._waits():
            self._look_at(min(each.looked_at_s for each in waits))

    def _waits(self) -> list[_Wait]:
        """A list, since they begin, and those that came end, without the lock."""
        return list(self._open.values())

    def _polled(self, now_s: float) -> list[_Wait]:
        """Those for one object at which a program looks in turn with others, and not at this moment."""
        return [
            each
            for each in list(self._in_vain.values())
            if each.looked_at_s <= now_s
            and each.ids
            and each.kind_name == "object"
            and each.goes_on(now_s, self.first_s)
        ]

    def _begin_look(self, waits: Sequence[_Wait], now_s: float) -> _Look:
        """At one of them, or at several as if they were one for all."""
        waited_s = min(each.pause_s for each in waits)
        for each in waits:
            each.pause_s *= 2
            each.looked_at_s = now_s + each.pause_s
        one, ids = waits[0], [id_ for each in waits for id_ in each.ids]
        num_may_fail = 0 if one.num_enough is None or len(waits) > 1 else len(ids) - one.num_enough
        return _Look(one, self._missing(one.kind_name, ids), num_may_fail, waited_s)

    def _tell(self, looks: Sequence[_Look], now_s: float) -> None:
        until_s, num_told = self._env.clock.time_s() + LOOK_S, 0
        # A wait that lasts is told again after twice its first pause. Others that began with it are due in
        # between.
        first_s = self.first_s
        self._told = {
            end: (at_s, wait)
            for end, (at_s, wait) in self._told.items()
            if at_s + 2 * first_s > now_s and wait.lasts(now_s, first_s)
        }
        for look in looks:
            stuck = self._stuck(look, until_s)
            if self._env.reactor.is_closed or num_told == TOLD_MAX:
                return
            if stuck is None or (end := _end_of(stuck)) in self._told:
                continue
            self._told[end] = now_s, look.wait
            num_told += 1
            num = len(look.missing)
            some = f", of which {LOOKED_AT_MAX} are looked at" if num > LOOKED_AT_MAX else ""
            others = f" (one of {num} that are missing{some})" if num > 1 else ""
            perhaps = "" if stuck.is_stuck else ", perhaps in vain"
            text = f"Waiting for more than {look.waited_s:g} s{perhaps}{others}: {stuck}"
            self._warnings.tell("long_wait", text)

    def _stuck(self, look: _Look, until_s: float) -> Explanation | None:
        """What keeps this wait from an end; None where it will end by what runs."""
        kind_name = look.wait.kind_name
        found: list[tuple[bytes, Explanation]] = []
        for id_ in look.missing[:LOOKED_AT_MAX]:
            if self._env.clock.time_s() > until_s:
                return None
            explanation = self._explain(kind_name, id_, False)
            if explanation.outlook is not MOVES:
                found.append((id_, explanation))
            if len(found) > look.num_may_fail:
                id_, _ = next((each for each in found if each[1].is_stuck), found[0])
                told = self._explain(kind_name, id_, True)
                return None if told.outlook is MOVES else told
        return None


def _end_of(stuck: Explanation) -> tuple[str, ...]:
    """What ends so ends alike. Of what has a name, others may differ in their ids only."""
    last = stuck.links[-1]
    return (last.code, last.name, stuck.unblock) if last.name else (last.code, last.text)
