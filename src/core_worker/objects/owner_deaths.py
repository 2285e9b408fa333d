"""Why the owner of an object is gone, for the error that its borrowers get.

    the owner cannot be reached ──► the GCS is asked how it ended ──► its raylet has not told yet: once more
                                                                  ──► a sentence; empty where nobody knows

A raylet tells within milliseconds. Where the GCS is away, or its node is not known to be dead yet, nobody
knows within owner_death_s, and the error says only that the owner is gone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from ray_mono.core_worker.environment import Environment
from ray_mono.protobuf import common_pb2, gcs_pb2
from ray_mono.rpc.surface import RpcError

KNOWN_MAX = 1000
"""Dead owners that are remembered. One may have owned very many objects."""


class OwnerDeaths:
    """Those that this process has met. Lock held."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._known: OrderedDict[bytes, str] = OrderedDict()
        self._waiting: dict[bytes, list[Callable[[str], None]]] = {}

    def why(self, owner: bytes, then: Callable[[str], None]) -> None:
        """then(sentence) of this owner (a serialized Address), which cannot be reached; perhaps at once."""
        worker_id = common_pb2.Address.FromString(owner).worker_id
        if worker_id in self._known:
            then(self._known[worker_id])
            return
        waiting = self._waiting.setdefault(worker_id, [])
        waiting.append(then)
        if len(waiting) == 1:
            self._env.reactor.call_later(
                self._env.config.owner_death_s, lambda: self._is_told(worker_id, waiting, "")
            )
            self._ask(worker_id, waiting)

    def _ask(self, worker_id: bytes, waiting: list[Callable[[str], None]]) -> None:
        def answered(death: Any, error: RpcError | None) -> None:
            if error is None and death.is_known:
                self._is_told(worker_id, waiting, death.cause.message)
            elif self._waiting.get(worker_id) is waiting:
                look_s = self._env.config.owner_death_look_s
                self._env.reactor.call_later(look_s, lambda: self._ask(worker_id, waiting))

        if self._waiting.get(worker_id) is waiting:
            request = gcs_pb2.GetWorkerDeathRequest(worker_id=worker_id)
            self._env.gcs.GetWorkerDeath.start(request, answered)

    def _is_told(self, worker_id: bytes, waiting: list[Callable[[str], None]], message: str) -> None:
        if self._waiting.get(worker_id) is not waiting:
            return
        del self._waiting[worker_id]
        if message:
            self._known[worker_id] = message
            if len(self._known) > KNOWN_MAX:
                self._known.popitem(last=False)
        for then in waiting:
            then(message)
