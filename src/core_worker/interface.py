"""The one interface by which the API uses the core of its process. CoreWorker and local mode's LocalCore
implement it, and a remote client would, too.

One suite of tests runs over all implementations (tests/integration/core_interface_test.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ray_mono.common.explanation import Explanation, WaitingOverview
from ray_mono.core_worker.context import InGroup
from ray_mono.core_worker.global_state import GlobalState
from ray_mono.core_worker.object_ref import ObjectRef, ReferenceHome
from ray_mono.core_worker.options import ActorOptions, CallRules, TaskOptions
from ray_mono.protobuf import common_pb2, object_manager_pb2


class CallerContext(Protocol):
    """What runs on the thread that asks, as far as the API reads it. A WorkerContext is one."""

    @property
    def is_main(self) -> bool:
        """Whether this thread runs no task of its own."""
        ...

    def task_id(self) -> bytes: ...

    def task_name(self) -> str: ...

    def function_name(self) -> str:
        """ "module.f" or "module.Actor.method"; the task's name alone where the function is not known."""
        ...

    def actor_id(self) -> bytes:
        """Empty outside of actors."""
        ...

    def actor_name(self) -> str:
        """The name that the actor was given. Empty for none, and outside of actors."""
        ...

    def assigned_resources(self) -> dict[str, float]:
        """In units."""
        ...

    def resource_ids(self) -> dict[str, list[int]]: ...

    def placement_group(self) -> InGroup:
        """Where the task or actor runs."""
        ...


class Template(Protocol):
    """What the calls of one function or method share, as far as the API reads it. Otherwise it is the core's
    own: `submit_…` of the core that made it takes it."""

    @property
    def num_returns(self) -> int:
        """Negative for generators: see options.py."""
        ...


class HeldActor(Protocol):
    """What a handle holds of its actor, as far as the API reads it. It goes back to the core that made it."""

    @property
    def actor_id(self) -> bytes: ...

    @property
    def creation_ref(self) -> ObjectRef[Any] | None:
        """Keeps the actor alive. None for a handle that does not."""
        ...


class PlacementGroups(Protocol):
    """The placement groups of the cluster. Rows are PlacementGroupInfo. Methods raise RpcError where the GCS
    does not answer, and RaySystemError where this process has left its cluster."""

    def create(self, wanted: common_pb2.PlacementGroupInfo) -> bytes:
        """Returns the id of a new group. wanted: its bundles, and what its options say. Waits for the GCS
        only where the group has a name. Raises ValueError for a name that is taken, RaySystemError."""
        ...

    def remove(self, group_id: bytes) -> None:
        """Does not wait. Nothing happens where there is no such group."""
        ...

    def wait(self, group_id: bytes, timeout_s: float | None) -> bool:
        """Whether it is created within that time. Raises ValueError for one that was removed, RaySystemError
        for one that could not be registered."""
        ...

    def ready(self, group_id: bytes, handle: Any) -> ObjectRef[Any]:
        """An object that becomes `handle` when the group is created, TaskPlacementGroupRemoved where it is
        removed, RaySystemError where it could not be registered."""
        ...

    def row(self, group_id: bytes) -> common_pb2.PlacementGroupInfo | None: ...

    def named(self, name: str, namespace: str) -> common_pb2.PlacementGroupInfo | None: ...

    def rows(self) -> Sequence[common_pb2.PlacementGroupInfo]: ...


class CoreInterface(ReferenceHome, Protocol):
    """The core of a connected process. Every method may be called from any thread."""

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
        """The directory of this node's files; empty in local mode."""
        ...

    @property
    def job_id(self) -> bytes: ...

    @property
    def namespace(self) -> str: ...

    @property
    def default_actor_lifetime(self) -> str:
        """ "detached" or "non_detached". Empty means "non_detached"."""
        ...

    @property
    def runtime_env(self) -> str:
        """JSON: the runtime environment of the job, or of what runs here."""
        ...

    @property
    def task_runtime_env(self) -> str:
        """JSON: the part of runtime_env that is not the job's. Tasks that are submitted here inherit it.
        Empty for none."""
        ...

    @property
    def context(self) -> CallerContext: ...

    @property
    def global_state(self) -> GlobalState: ...

    @property
    def placement_groups(self) -> PlacementGroups: ...

    # ---- objects

    def put(self, value: Any) -> ObjectRef[Any]:
        """Stores a value, frozen as it is now. Raises TypeError if it does not pickle, and
        ObjectStoreFullError."""
        ...

    def get(self, refs: list[ObjectRef[Any]], timeout_s: float | None) -> list[Any]:
        """The values, in order. Raises the first error value, GetTimeoutError, ObjectLostError,
        RaySystemError."""
        ...

    def wait(
        self, refs: list[ObjectRef[Any]], num_returns: int, timeout_s: float | None, fetch_local: bool
    ) -> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]]:
        """Returns (ready, not ready), each in the order of `refs`; at most num_returns ready ones."""
        ...

    def location_of(self, ref: ObjectRef[Any]) -> tuple[Sequence[bytes], int | None] | None:
        """Returns (the nodes whose stores have the object, its size in bytes), as far as this process knows.
        The size is None while there is no value. Returns None where only the owner knows."""
        ...

    def reference_counts(self) -> int:
        """How many objects are referenced here. References that were dropped no longer count."""
        ...

    def store_stats(self) -> object_manager_pb2.StoreStats:
        """The statistics of this node's plasma store."""
        ...

    # ---- tasks and actors

    def export(self, function_or_class: Any, kind: str) -> Any:
        """Sends the code on its way to the workers. Returns what task_template and create_actor take. Raises
        TypeError, ValueError."""
        ...

    def task_template(self, code: Any, options: TaskOptions) -> Template:
        """What the calls of a function with these options share."""
        ...

    def submit_task(self, template: Any, flat_args: list[Any]) -> list[Any]:
        """Returns a reference for each return, or an ObjectRefGenerator.

        flat_args: keyword and value of each argument, [None, 1, "key", 2, …]; positional ones have None.
        """
        ...

    def submit_tasks(
        self, template: Any, items: Sequence[Any], chunk: int, refs: list[ObjectRef[Any]]
    ) -> None:
        """A task for each item, which is its one argument, of a template that returns one value. chunk: how
        many travel together; 0: the core chooses. refs takes the references as they are made, in order,
        also where this raises, as submit_task does."""
        ...

    def create_actor(self, code: Any, options: ActorOptions, flat_args: list[Any]) -> HeldActor:
        """Raises ActorAlreadyExistsError."""
        ...

    def hold_actor(self, actor_id: bytes, creation_ref: ObjectRef[Any] | None, rules: CallRules) -> HeldActor:
        """For a handle that arrived, or was looked up."""
        ...

    def method_template(self, method_name: str, class_name: str, **options: Any) -> Template:
        """What the calls of a method through one handle share."""
        ...

    def submit_actor_task(self, held: Any, template: Any, flat_args: list[Any]) -> list[Any]:
        """As submit_task. Raises PendingCallsLimitExceeded, too."""
        ...

    def submit_actor_tasks(
        self, held: Any, template: Any, items: Sequence[Any], chunk: int, refs: list[ObjectRef[Any]]
    ) -> None:
        """As submit_tasks. Raises PendingCallsLimitExceeded, too."""
        ...

    def get_named_actor(self, name: str, namespace: str) -> Any:
        """The ActorInfo. Raises ValueError where there is none, RpcError where the GCS does not answer."""
        ...

    def kill_actor(self, actor_id: bytes, no_restart: bool) -> None: ...

    def cancel(self, ref: ObjectRef[Any], force: bool, recursive: bool) -> None:
        """Cancels the task that makes this object. Raises ValueError for an actor's call with force."""
        ...

    # ---- the task, actor and process that ask

    def explain(self, kind_name: str, id_: bytes, is_sure: bool = True) -> Explanation:
        """Why it waits. kind_name: object, task, actor or placement_group. Asks other processes, each at most
        for seconds. is_sure: what seems to be stuck is asked about again after a moment."""
        ...

    def explain_all(self) -> WaitingOverview:
        """All that waits in the cluster."""
        ...

    def exit_actor(self) -> None:
        """Ends the actor that calls this: raises ActorExit, or SystemExit on a thread that the actor started.
        Raises TypeError outside of actors."""
        ...

    def is_task_cancelled(self) -> bool:
        """Whether the task that asks was cancelled. Raises RuntimeError on a driver, and in async actors."""
        ...

    def add_span(self, name: str, extra_data: str, started_s: float) -> None:
        """A span that the program marked is over. extra_data: a JSON object. started_s: by
        time.perf_counter()."""
        ...

    def send_events(self) -> None:
        """Sends what this process has noted for the timeline."""
        ...

    def run_function_on_all_workers(self, function: Callable[[dict[str, Any]], None]) -> None:
        """Runs function(worker_info) here and once on every worker of the job."""
        ...

    def at_shutdown(self, step: Callable[[], None]) -> None:
        """step() runs when this process leaves, before its connections close. Steps run in the order in which
        they were given."""
        ...

    def shutdown(self) -> None:
        """Leaves the cluster: every wait in this process ends, and every connection closes. A Ctrl-C shortens
        it, and is raised at its end."""
        ...

    def abandon(self) -> None:
        """For a fork of the process: does nothing any more, and tells nobody."""
        ...
