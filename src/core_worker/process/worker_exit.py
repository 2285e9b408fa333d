"""The end of a worker that ends in order.

    1. Its last answers go out. Calls of an actor that moves end before.
    2. An actor's __ray_shutdown__ runs, and its instance is let go.
    3. The worker waits until nobody needs what it owns. Whoever moves its actor to another node is told
       before: that goes on there meanwhile.
    4. User code sees what it sees at the end of any Python process (process_end.py).

A worker that stays for what it owns holds memory and nothing else. Its lease ended with its last answer
(max_calls), or an actor that nobody has a handle of gives it back here. The raylet ends the worker with its
job. An actor with accelerators stays only until the tasks that it submitted are over, since the process holds
their memory. A worker that ends by an exit of its own code, by SIGTERM or by a constructor that failed skips
step 3.
"""

from __future__ import annotations

import gc
import logging
import os
from typing import NoReturn

from ray_mono.core_worker.core_worker import CoreWorker
from ray_mono.core_worker.process import process_end, termination
from ray_mono.core_worker.task_execution.execution import Execution
from ray_mono.core_worker.task_execution.running import CALLS_POLL_S
from ray_mono.core_worker.task_execution.task_reply import flush_output
from ray_mono.protobuf import raylet_pb2
from ray_mono.rpc.reactor import Waiter

logger = logging.getLogger(__name__)

ANSWERS_TIMEOUT_S = 10.0
"""How long a worker that ends waits for its last answers to go out."""
ANSWERS_POLL_S = 0.01
CALLS_END_S = 60.0
"""How long calls of an actor that moves may take that run beside each other. One that runs alone has no
limit."""
MOVED_STAY_S = 0.5
"""How long the process of an actor that has moved gives back calls that are on their way, at least."""
STAY_POLL_S = 0.1
"""How often a worker that stays for others looks whether they still need it."""


class OrderlyExit:
    """The end of one worker."""

    def __init__(self, core: CoreWorker, execution: Execution) -> None:
        self._core = core
        self._env = core.env
        self._execution = execution
        self._running = execution.running

    def leave(self) -> NoReturn:
        """Ends the process. The calls that waited in its queue were given back already."""
        running, env = self._running, self._env
        self._core.send_events()
        if self._execution.receiver.moves:
            self._let_calls_end()
        self._let_answers_out()
        self._execution.close_actor()
        if self._execution.receiver.moves:
            self._tell_movers()
        if not running.owes_answer:
            self._stay_while_needed()
        is_killed = running.is_terminated
        if running.actor is None and not is_killed:
            # The GCS was told of an actor's end. This end is no crash either, though the worker's lessee has
            # perhaps not given it back yet.
            env.raylet.NotifyLeaving.notify(
                raylet_pb2.NotifyLeavingRequest(worker_id=env.worker_id, because=running.exit_cause)
            )
        process_end.run()
        self._core.send_events()
        self._core.shutdown()
        flush_output()
        if is_killed:
            termination.die()
        os._exit(0)

    def _let_calls_end(self) -> None:
        """Those that an actor runs beside each other. Not without end: they may wait for a call that was
        given back."""
        env = self._env
        deadline_s = env.clock.time_s() + CALLS_END_S
        while self._running.calls and env.clock.time_s() < deadline_s and not env.reactor.is_closed:
            env.reactor.wait(Waiter(env.reactor), CALLS_POLL_S)

    def _let_answers_out(self) -> None:
        """Waits until every answer has left this process. Some wait for owners, some for room in a socket."""
        env = self._env
        deadline_s = env.clock.time_s() + ANSWERS_TIMEOUT_S
        while env.clock.time_s() < deadline_s and not env.reactor.is_closed:
            with env.lock:
                self._execution.replies.flush()
                if self._execution.replies.are_settled and not self._core.has_unsent:
                    return
            env.reactor.wait(Waiter(env.reactor), ANSWERS_POLL_S)

    def _stay_while_needed(self) -> None:
        """Waits until no task that this worker submitted is under way, and nobody elsewhere holds an object
        of its own. What only its own variables hold goes with it.
        """
        env, actor = self._env, self._running.actor
        holds_devices = actor is not None and bool(actor.resource_ids)
        is_told = False
        while not env.reactor.is_closed and self._core.is_needed(by_holders=not holds_devices):
            if not is_told:
                is_told = True
                gc.collect()  # cycles of the actor's may hold objects of others, who stay for those
                if actor is not None and not holds_devices:
                    self._give_lease_back()
                logger.info(
                    "made all its calls and stays while others need what it owns: %s", self._core.story()
                )
            env.reactor.wait(Waiter(env.reactor), STAY_POLL_S)

    def _tell_movers(self) -> None:
        """Then callers hear of the move by the calls that are given back to them."""
        env, running = self._env, self._running
        with env.lock:
            all_left = self._execution.replies.are_settled and not self._core.has_unsent
            owes_answers = running.owes_answer or bool(running.calls) or not all_left
            self._execution.receiver.moved(owes_answers)
            env.reactor.flush()
        env.reactor.wait(Waiter(env.reactor), MOVED_STAY_S)

    def _give_lease_back(self) -> None:
        request = raylet_pb2.ReturnWorkerRequest(lease_id=self._core.lease_id, leaving=True)
        with self._env.lock:
            self._env.raylet.ReturnWorker.start(request, lambda reply, error: None)
            self._env.reactor.flush()
