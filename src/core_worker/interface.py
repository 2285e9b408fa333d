"""What the API asks of the core of its process, and nothing else of it: CoreWorker, local mode's LocalCore,
and later the remote client.

One suite of tests runs over all of them (tests/integration/core_interface_test.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ray_mono.core_worker.context import WorkerContext
from ray_mono.core_worker.global_state import GlobalState
from ray_mono.core_worker.object_ref import ObjectRef, ReferenceHome
from ray_mono.core_worker.options import ActorOptions, CallRules, TaskOptions
from ray_mono.protobuf import object_manager_pb2


class CoreInterface(ReferenceHome, Protocol):
    """The core of a process that is connected. Every method may be called from any thread."""

    # ---- what this process is, and serves

    @property
    def is_driver(self) -> bool: ...

    @property
    def worker_id(self) -> bytes: ...

    @property
    def node_id(self) -> bytes: ...

    @property
    def node_host(self) -> str:
        """The address of this node, as others reach it."""
        ...

    @property
    def node_labels(self) -> Mapping[str, str]: ...

    @property
    def session_dir(self) -> str:
        """Of this node's files; empty in local mode."""
        ...

    @property
    def job_id(self) -> bytes: ...

    @property
    def namespace(self) -> str: ...

    @property
    def default_actor_lifetime(self) -> str:
        """ "detached" or "non_detached"; empty: the latter."""
        ...

    @property
    def runtime_env(self) -> str:
        """JSON: what the job, or what runs here, was given."""
        ...

    @property
    def task_runtime_env(self) -> str:
        """JSON: the part of it that is not the job's, which what is submitted here inherits; empty for none."""
        ...

    @property
    def context(self) -> WorkerContext:
        """What runs on this thread."""
        ...

    @property
    def global_state(self) -> GlobalState: ...

    # ---- objects

    def put(self, value: Any) -> ObjectRef[Any]:
        """Stores a value, frozen as it is now. Raises TypeError for what does not pickle and
        ObjectStoreFullError."""
        ...

    def get(self, refs: list[ObjectRef[Any]], timeout_s: float | None) -> list[Any]:
        """The values, in order. Raises the first error value, GetTimeoutError, ObjectLostError,
        RaySystemError."""
        ...

    def wait(
        self, refs: list[ObjectRef[Any]], num_returns: int, timeout_s: float | None, fetch_local: bool
    ) -> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]]:
        """(ready, not ready), each in the order of `refs`; at most num_returns ready ones."""
        ...

    def location_of(self, ref: ObjectRef[Any]) -> tuple[Sequence[bytes], int | None] | None:
        """(nodes that have it in their stores, its size in bytes; None while there is no value), as this
        process knows it. None where only its owner knows."""
        ...

    def reference_counts(self) -> int:
        """How many objects are referenced here, after what was dropped was counted."""
        ...

    def store_stats(self) -> object_manager_pb2.StoreStats:
        """Of this node's plasma store."""
        ...

    # ---- tasks and actors

    def export(self, function_or_class: Any, kind: str) -> Any:
        """The code on its way to the workers: what task_template and create_actor take. Raises TypeError,
        ValueError."""
        ...

    def task_template(self, code: Any, options: TaskOptions) -> Any:
        """What calls of a function with these options share: what submit_task takes."""
        ...

    def submit_task(self, template: Any, flat_args: list[Any]) -> list[Any]:
        """flat_args: [None, 1, "key", 2, …]. A reference for each return; an ObjectRefGenerator for a
        generator."""
        ...

    def create_actor(self, code: Any, options: ActorOptions, flat_args: list[Any]) -> Any:
        """What a handle holds, which has `actor_id` and `creation_ref`. Raises ActorAlreadyExistsError."""
        ...

    def hold_actor(self, actor_id: bytes, creation_ref: ObjectRef[Any] | None, rules: CallRules) -> Any:
        """The same, for a handle that arrived or was looked up."""
        ...

    def method_template(self, method_name: str, class_name: str, **options: Any) -> Any:
        """What calls of a method through one handle share."""
        ...

    def submit_actor_task(self, held: Any, template: Any, flat_args: list[Any]) -> list[Any]:
        """As submit_task. Raises PendingCallsLimitExceeded, too."""
        ...

    def get_named_actor(self, name: str, namespace: str) -> Any:
        """ActorInfo. Raises ValueError where there is none, RpcError where the GCS does not answer."""
        ...

    def kill_actor(self, actor_id: bytes, no_restart: bool) -> None: ...

    def cancel(self, ref: ObjectRef[Any], force: bool, recursive: bool) -> None:
        """The task that makes this object. Raises ValueError for force and an actor's call."""
        ...

    # ---- the task, actor and process that ask

    def exit_actor(self) -> None:
        """Ends the actor that calls it: raises ActorExit, or SystemExit on a thread that the actor started.
        Raises TypeError elsewhere."""
        ...

    def is_task_cancelled(self) -> bool:
        """Raises RuntimeError where nobody is told so: on a driver, and in async actors."""
        ...

    def add_span(self, name: str, extra_data: str, started_s: float) -> None:
        """A span that the program marked is over. extra_data: a JSON object; started_s:
        time.perf_counter()'s."""
        ...

    def send_events(self) -> None:
        """What this process has noted for the timeline goes out."""
        ...

    def run_function_on_all_workers(self, function: Callable[[dict[str, Any]], None]) -> None:
        """Runs function(worker_info) here and once on every worker of the job."""
        ...

    def at_shutdown(self, step: Callable[[], None]) -> None:
        """step() runs when this process leaves, before its connections close; in the order in which they were
        named."""
        ...

    def shutdown(self) -> None:
        """Leaves: every wait in this process ends, every connection closes. A Ctrl-C shortens it, and is
        raised at its end."""
        ...

    def abandon(self) -> None:
        """In a fork: forgets everything without a word to anybody."""
        ...
