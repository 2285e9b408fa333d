"""`global_worker`, under `ray_mono.compat` only: Ray keeps a process's connection in it, and programs look
into it. This one answers questions, and nothing can be set.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray_mono._private.driver import init
from ray_mono.common.ids import ActorID, JobID, NodeID, TaskID, WorkerID
from ray_mono.core_worker.process import current

if TYPE_CHECKING:
    from ray_mono._private.node.node import Node
    from ray_mono.core_worker.interface import CoreInterface


class GlobalWorker:
    """Answers for this process, at the moment of the question.

    What needs a connection raises RaySystemError where there is none.
    """

    @property
    def connected(self) -> bool:
        return init.is_initialized()

    @property
    def mode(self) -> int | None:
        """SCRIPT_MODE, WORKER_MODE or LOCAL_MODE; None where not connected."""
        return init.mode()

    def check_connected(self) -> None:
        """Raises RaySystemError where this process is not connected."""
        current.require()

    @property
    def core_worker(self) -> CoreInterface:
        return current.require()

    @property
    def node(self) -> Node | None:
        """What `init` started or joined; None in workers."""
        return init.joined_node()

    @property
    def node_ip_address(self) -> str:
        return current.require().node_host

    @property
    def namespace(self) -> str:
        return current.require().namespace

    @property
    def current_job_id(self) -> JobID:
        return JobID(current.require().job_id)

    @property
    def current_node_id(self) -> NodeID:
        return NodeID(current.require().node_id)

    @property
    def current_task_id(self) -> TaskID:
        return TaskID(current.require().context.task_id())

    @property
    def actor_id(self) -> ActorID:
        """The nil id outside of actors."""
        actor_id = current.require().context.actor_id()
        return ActorID(actor_id) if actor_id else ActorID.nil()

    @property
    def worker_id(self) -> bytes:
        return WorkerID(current.require().worker_id).binary()

    def run_function_on_all_workers(self, function: Callable[[dict[str, Any]], None]) -> None:
        init.run_function_on_all_workers(function)


global_worker = GlobalWorker()
