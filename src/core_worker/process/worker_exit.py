"""The end of a worker that ends in order: what it owes goes out, what others need of it stays with it, and then user code sees what it
sees at the end of any Python process (process_end.py).

    last answers out ──► __ray_shutdown__, the actor's instance let go ──► nobody needs what it owns ──► the end of a process ──► gone

Its lease ended with the last answer (max_calls), or is given back here by an actor that nobody has a handle of, so that a worker that
stays for what it owns holds memory and nothing else; the raylet ends it with its job. An actor with accelerators, whose memory the process
holds, stays only until the tasks that it submitted are over. One that leaves by itself does not wait for either.
"""

from __future__ import annotations

import gc
import logging
import os
import time
from typing import TYPE_CHECKING, NoReturn

from ray_mono.common.raw_error import exit_code_of, repr_of
from ray_mono.core_worker.process import process_end, termination
from ray_mono.core_worker.process.config import GCS_TIMEOUT_S
from ray_mono.core_worker.task_execution.task_reply import flush_output
from ray_mono.protobuf import common_pb2, raylet_pb2
from ray_mono.rpc.reactor import Waiter
from ray_mono.rpc.surface import RpcError

if TYPE_CHECKING:
    from ray_mono.core_worker.core_worker import CoreWorker
    from ray_mono.core_worker.task_execution.actor_runtime import ActorRuntime
    from ray_mono.core_worker.task_execution.executor import Executor

logger = logging.getLogger(__name__)

ANSWERS_TIMEOUT_S = 10.0
"""For the last answers of a worker that ends."""
ANSWERS_POLL_S = 0.01
STAY_POLL_S = 0.1
"""How often a worker that stays for others looks whether they still need it."""


def leave(core: CoreWorker, executor: Executor) -> NoReturn:
    """Ends the process. What waited in the executor's queue was given back already."""
    with core.lock:
        executor.events.send()
    _let_answers_out(core, executor)
    if executor.actor is not None:
        executor.actor.close()
    if not executor.owes_answer:
        _stay_while_needed(core, executor.actor)
    is_killed = executor.termination.is_wanted
    if executor.actor is None and not is_killed:
        # Of an actor's end the GCS was told. This is no crash either, though its lessee has perhaps not given it back yet.
        core.raylet.NotifyLeaving.notify(
            raylet_pb2.NotifyLeavingRequest(worker_id=core.worker_id, because=executor.exit_cause)
        )
    process_end.run()
    with core.lock:
        executor.events.send()
    core.shutdown()
    flush_output()
    if is_killed:
        termination.die()
    os._exit(0)


def _let_answers_out(core: CoreWorker, executor: Executor) -> None:
    """Waits until every answer has left this process: some wait for owners, some for room in a socket."""
    deadline_s = time.monotonic() + ANSWERS_TIMEOUT_S
    while time.monotonic() < deadline_s and not core.reactor.is_closed:
        with core.lock:
            core.reactor.flush()
            if not executor.answers.num_unsettled and not core.server.has_unsent:
                return
        core.reactor.wait(Waiter(core.reactor), ANSWERS_POLL_S)


def _stay_while_needed(core: CoreWorker, actor: ActorRuntime | None) -> None:
    """Until no task that this worker submitted is under way and nobody elsewhere holds an object of its. What only its own variables
    hold goes with it.
    """
    holds_devices = actor is not None and bool(actor.resource_ids)
    is_told = False
    while not core.reactor.is_closed:
        with core.lock:
            core.drain()
            if not core.tasks.pending and (holds_devices or not core.references.is_borrowed):
                return
        if not is_told:
            is_told = True
            gc.collect()  # cycles of the actor's may hold what others own, who stay for that
            if actor is not None and not holds_devices:
                _give_lease_back(core)
            logger.info(
                "made all its calls and stays while others need what it owns: %d references, %d tasks",
                len(core.references),
                len(core.tasks.pending),
            )
        core.reactor.wait(Waiter(core.reactor), STAY_POLL_S)


def _give_lease_back(core: CoreWorker) -> None:
    request = raylet_pb2.ReturnWorkerRequest(lease_id=core.getter.lease_id, leaving=True)
    with core.lock:
        core.raylet.ReturnWorker.start(request, lambda reply, error: None)
        core.reactor.flush()


def cause_of_exit(error: BaseException) -> str:
    return f"its code raised SystemExit({repr_of(exit_code_of(error))})"


def report_exit(core: CoreWorker, error: BaseException) -> None:
    """Tells the GCS of an actor that ends by its own code: exit_actor(), or SystemExit."""
    if isinstance(error, SystemExit):
        code = exit_code_of(error)
        is_orderly = isinstance(code, int) and code == 0
        kind = common_pb2.DeathCause.EXITED if is_orderly else common_pb2.DeathCause.WORKER_DIED
        message = cause_of_exit(error)
        if not is_orderly:
            message = f"worker pid {core.pid} on node {core.node.host} ended: {message}"
        cause = common_pb2.DeathCause(kind=kind, message=message)
    else:
        cause = common_pb2.DeathCause(kind=common_pb2.DeathCause.EXITED, message="exit_actor() was called")
    info = common_pb2.WorkerInfo(
        worker_id=core.worker_id, node_id=core.node_id, pid=core.pid, death_cause=cause
    )
    try:
        core.gcs.ReportWorkerDeath(info, timeout_s=GCS_TIMEOUT_S)
    except RpcError as failure:
        logger.error("the GCS was not told of the actor's exit: %s", failure)
