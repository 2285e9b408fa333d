"""`get`, `put`, `wait`, `kill`: the calls that everything else is made of, where programs look for them.

They check what they were given and hand it to the core worker. `init`, `shutdown` and what belongs to them
stand in `driver/init.py`, and are here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

import ray_mono.exceptions  # noqa: F401 - names the errors' module, for tracebacks
from ray_mono._private.argument_checks import flag, is_number, is_sendable, plain
from ray_mono._private.driver import init_arguments
from ray_mono._private.driver.auto_init import connected_core
from ray_mono._private.driver.init import LOCAL_MODE as LOCAL_MODE
from ray_mono._private.driver.init import SCRIPT_MODE as SCRIPT_MODE
from ray_mono._private.driver.init import WORKER_MODE as WORKER_MODE
from ray_mono._private.driver.init import init as init
from ray_mono._private.driver.init import is_initialized as is_initialized
from ray_mono._private.driver.init import mode as mode
from ray_mono._private.driver.init import run_function_on_all_workers as run_function_on_all_workers
from ray_mono._private.driver.init import shutdown as shutdown
from ray_mono._private.waiting import REFERENCES, WAITABLES, check_references, checked_timeout_s
from ray_mono.common.short_tracebacks import shortened
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.object_ref_generator import ObjectRefGenerator
from ray_mono.core_worker.process import current

if TYPE_CHECKING:
    from ray_mono.actor import ActorHandle

T = TypeVar("T")
Waitable = TypeVar("Waitable", bound="ObjectRef[Any] | ObjectRefGenerator[Any]")
__tracebackhide__ = True  # for pytest: the line that called one of these says more

# ---------------------------------------------------------------- objects


@overload
def get(object_refs: ObjectRef[T], *, timeout: float | None = None) -> T: ...
@overload
def get(object_refs: Sequence[ObjectRef[T]], *, timeout: float | None = None) -> list[T]: ...


def get(object_refs: Any, *, timeout: float | None = None) -> Any:
    """The value of a reference, or the values of a list of them; waits until they are there.

    Args:
        timeout: in seconds; None waits as long as it takes, 0 does not wait.

    Raises the task's error (a RayTaskError that is also of the original type), GetTimeoutError,
    RayActorError, WorkerCrashedError or ObjectLostError; TypeError or ValueError for what is no reference.
    """
    core = current.core or connected_core()
    timeout_s = None if timeout is None else checked_timeout_s(timeout, "get")
    if isinstance(object_refs, ObjectRef):
        try:
            return core.get([object_refs], timeout_s)[0]
        except BaseException as error:
            raise shortened(error)  # noqa: B904
    if isinstance(object_refs, ObjectRefGenerator):
        return object_refs  # as in Ray: what it yields is what has values
    if not isinstance(object_refs, list):
        raise ValueError(
            f"get() takes an ObjectRef or a list of ObjectRefs, got {object_refs!r} of type"
            f" {type(object_refs).__name__}"
        )
    check_references("get", object_refs, REFERENCES)
    try:
        return core.get(object_refs, timeout_s)
    except BaseException as error:
        raise shortened(error)  # noqa: B904


def put(value: T, *, _owner: Any = None) -> ObjectRef[T]:
    """Stores a value, as it is now, and returns a reference to it. Waits while the store is full.

    Raises TypeError for an ObjectRef and for what cannot be pickled, and ObjectStoreFullError.
    """
    if isinstance(value, ObjectRef):
        raise TypeError(
            f"put() was given {value!r}, which is a reference already; to store it as such, put it in a list"
        )
    if _owner is not None:
        raise ValueError(
            f"_owner must be None, as Ray has it since 2.56: who puts a value owns it; got {_owner!r}"
        )
    try:
        return connected_core().put(value)
    except BaseException as error:
        raise shortened(error)  # noqa: B904


def wait(
    ray_waitables: list[Waitable],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[Waitable], list[Waitable]]:
    """Waits until `num_returns` of the references have values (or errors). A generator counts as its next
    item.

    Args:
        num_returns: 1 to as many as there are.
        timeout: in seconds; None waits as long as it takes.
        fetch_local: also have the values brought to this node.

    Returns (ready, not ready), both in the order given; at most num_returns are in the first, fewer after a
    timeout. Raises TypeError or ValueError for anything but a list of different references.
    """
    if isinstance(ray_waitables, (ObjectRef, ObjectRefGenerator)):
        raise TypeError(f"wait() takes a list of ObjectRefs, got the single {ray_waitables!r}")
    if not isinstance(ray_waitables, list):
        raise TypeError(
            f"wait() takes a list of ObjectRefs, got {ray_waitables!r} of type {type(ray_waitables).__name__}"
        )
    check_references("wait", ray_waitables, WAITABLES)
    timeout_s, fetch_local = checked_timeout_s(timeout, "wait"), flag("fetch_local", fetch_local)
    core = connected_core()
    if not ray_waitables:
        return [], []
    if len({ref._id for ref in ray_waitables}) != len(ray_waitables):
        raise ValueError(f"wait() takes different ObjectRefs, but the list has repeats: {ray_waitables!r}")
    num_returns = plain(num_returns)
    if not is_number(num_returns):
        raise TypeError(
            f"num_returns must be a whole number, got {num_returns!r} of type {type(num_returns).__name__}"
        )
    if not 1 <= num_returns <= len(ray_waitables) or num_returns != int(num_returns):
        raise ValueError(
            f"num_returns must be a whole number from 1 to the number of references ({len(ray_waitables)}),"
            f" got {num_returns!r}"
        )
    # A generator has the id of its next item.
    waitables: Any = ray_waitables
    try:
        return core.wait(waitables, int(num_returns), timeout_s, fetch_local)  # type: ignore[return-value]
    except BaseException as error:
        raise shortened(error)  # noqa: B904


# ---------------------------------------------------------------- actors and workers


def kill(actor: ActorHandle[Any], *, no_restart: bool = True) -> None:
    """Ends an actor at once; calls that have not finished fail with ActorDiedError.

    Args:
        no_restart: False lets it be restarted as if it had crashed, if max_restarts allows.

    Raises ValueError for anything but an actor's handle.
    """
    from ray_mono.actor import ActorHandle

    if not isinstance(actor, ActorHandle):
        raise ValueError(f"kill() takes an actor's handle, got {actor!r} of type {type(actor).__name__}")
    actor._ray_connected_core().kill_actor(actor._ray_state.actor_id, flag("no_restart", no_restart))


def get_actor(name: str, namespace: str | None = None) -> ActorHandle[Any]:
    """The handle of a named actor. It does not keep the actor alive.

    Args:
        namespace: where to look; this driver's own if None.

    Raises ValueError if there is no such actor.
    """
    from ray_mono._private.remote.actor_metadata import ActorMetadata
    from ray_mono.actor import weak_handle

    if not isinstance(name, str) or not name or not is_sendable(name):
        raise ValueError(f"name must be a string that is not empty, and valid Unicode, got {name!r}")
    if namespace is not None:
        init_arguments.check_namespace(namespace)
    core = connected_core()
    info = core.get_named_actor(name, namespace or core.namespace)
    return weak_handle(core, info.actor_id, ActorMetadata.loads(info.serialized_handle))


def get_gpu_ids() -> list[int]:
    """Indices of the GPUs that the running task or actor may use; empty on a driver."""
    return list(connected_core().context.resource_ids().get("GPU", []))
