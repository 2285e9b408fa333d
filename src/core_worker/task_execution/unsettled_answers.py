"""Answers that wait until owners have acknowledged references that are in them, or that their calls keep.

Before the next call begins, which may end the process, owners have a moment for that. If it is not enough,
nobody will know which calls of these callers had begun (kept_answers.py).
"""

from __future__ import annotations

from collections.abc import Iterable

from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.task_execution.call import Call
from ray_mono.core_worker.task_execution.kept_answers import KeptAnswers
from ray_mono.rpc.reactor import Waiter


class UnsettledAnswers:
    """Of one worker. Lock held, where nothing else is said."""

    def __init__(self, env: Environment, kept: KeptAnswers) -> None:
        self._env = env
        self._kept = kept
        # With how many reasons each waits for.
        self._calls: dict[Call, int] = {}
        # Who waits until there is none.
        self._waiters: list[Waiter] = []
        self._waited_for_at_s = 0.0

    @property
    def has_some(self) -> bool:
        return bool(self._calls)

    def waits(self, call: Call) -> None:
        """Its answer does, for one more reason."""
        self._calls[call] = self._calls.get(call, 0) + 1

    def settled(self, call: Call) -> None:
        """For one reason less."""
        self._calls[call] -= 1
        if not self._calls[call]:
            del self._calls[call]
        if not self._calls:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                waiter.set()

    def give_a_moment(self, call: Call) -> None:
        """This call is over, and another one is to begin. Without the lock."""
        env = self._env
        waiter = Waiter(env.reactor)
        with env.lock:
            if env.clock.time_s() < self._waited_for_at_s:
                self._go_on_without([call] if call in self._calls else [])
                return
            if not self._calls:
                return
            self._waiters.append(waiter)
        if not env.reactor.wait(waiter, env.config.unread_answer_s):
            with env.lock:
                if not waiter.done:
                    self._waited_for_at_s = env.clock.time_s() + env.config.unread_again_s
                    self._waiters.remove(waiter)
                    self._go_on_without(self._calls)

    def _go_on_without(self, unsettled: Iterable[Call]) -> None:
        for call in unsettled:
            self._kept.may_be_lost(call.answer_to.connection)
