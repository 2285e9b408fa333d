"""`get`, `put`, `wait`, `kill` and `get_actor`, where programs of Ray look for them. They check what they are
given, and hand it to the core worker. `init`, `shutdown` and what belongs to them are in `driver/init.py`,
and have their names here, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

import ray_mono.exceptions  # noqa: F401 - names the errors' module, for tracebacks
from ray_mono._private.argument_checks import flag, is_number, is_sendable, plain, seconds
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
from ray_mono.common.short_tracebacks import shortened
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.object_ref_generator import ObjectRefGenerator
from ray_mono.core_worker.process import current

if TYPE_CHECKING:
    from ray_mono.actor import ActorHandle

T = TypeVar("T")
Waitable = TypeVar("Waitable", bound="ObjectRef[Any] | ObjectRefGenerator[Any]")
__tracebackhide__ = True  # for pytest: the line that called one of these says more
_REFERENCES = frozenset({ObjectRef})
_WAITABLES = frozenset({ObjectRef, ObjectRefGenerator})

# ---------------------------------------------------------------- objects


@overload
def get(object_refs: ObjectRef[T], *, timeout: float | None = None) -> T: ...
@overload
def get(object_refs: Sequence[ObjectRef[T]], *, timeout: float | None = None) -> list[T]: ...


def get(object_refs: Any, *, timeout: float | None = None) -> Any:
    """The value of a reference, or a list of the values of a list of them. Waits until they are there.

    Arrays in values that lie in the node's store are read-only, and share its memory. Values are made anew by
    each `get`.

    Args:
        object_refs: an ObjectRef, or a list of them. An ObjectRefGenerator is returned as it is, as in Ray.
        timeout: in seconds. None waits as long as it takes, and so does -1, as in Ray; 0 does not wait.

    Raises what the task raised, as a RayTaskError that is also of that type; of several errors in a list the
    first one. Further GetTimeoutError; TaskCancelledError; RayActorError, which is ActorDiedError or
    ActorUnavailableError; WorkerCrashedError, NodeDiedError; ObjectLostError, and ObjectStoreFullError if a
    copy finds no room on this node; RaySystemError for a value that cannot be unpickled, and where the
    session is over. ValueError for what is neither a reference nor a list; TypeError for a list with anything
    else.
    """
    core = current.core or connected_core()
    timeout_s = None if timeout is None else _checked_timeout_s(timeout, "get")
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
    _check_references("get", object_refs, _REFERENCES)
    try:
        return core.get(object_refs, timeout_s)
    except BaseException as error:
        raise shortened(error)  # noqa: B904


def put(value: T, *, _owner: Any = None) -> ObjectRef[T]:
    """Stores a value as it is now, and returns a reference to it. This process owns the object: it is lost
    when the process ends.

    A value of up to 100 KiB stays in this process's memory. A larger one goes into the node's store, and this
    waits while that is full.

    Args:
        _owner: None. As in Ray since 2.56 the process that puts a value owns it.

    Raises TypeError for an ObjectRef, and for what cannot be pickled (or what the value's own code raises
    then); ObjectStoreFullError; ValueError for an _owner; RaySystemError where the session is over.
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
    """Waits until `num_returns` of the references have values, or errors, which count as values.

    Args:
        ray_waitables: a list of different ObjectRefs and ObjectRefGenerators. A generator stands for its next
            item, or its end.
        num_returns: a whole number from 1 to the length of the list.
        timeout: in seconds. None waits as long as it takes, 0 does not wait.
        fetch_local: a value on another node counts when it was brought to this node. False does not bring it.

    Returns (ready, not ready), both in the order given. At most num_returns are ready; fewer after a timeout.
    For an empty list both are empty.

    Raises TypeError for what is no list, for a list with anything else, and for a num_returns or timeout that
    is no number; ValueError for a reference that is there twice, and for other values of num_returns and
    timeout; RaySystemError where the session is over.
    """
    if isinstance(ray_waitables, (ObjectRef, ObjectRefGenerator)):
        raise TypeError(f"wait() takes a list of ObjectRefs, got the single {ray_waitables!r}")
    if not isinstance(ray_waitables, list):
        raise TypeError(
            f"wait() takes a list of ObjectRefs, got {ray_waitables!r} of type {type(ray_waitables).__name__}"
        )
    _check_references("wait", ray_waitables, _WAITABLES)
    timeout_s, fetch_local = _checked_timeout_s(timeout, "wait"), flag("fetch_local", fetch_local)
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


def _check_references(caller: str, values: list[Any], accepted: frozenset[type]) -> None:
    """Raises TypeError naming what is no reference.

    It looks at the types first, which is fast: programs wait for long lists again and again.
    """
    if accepted.issuperset(map(type, values)):
        return
    for value in values:
        if not isinstance(value, tuple(accepted)):
            raise TypeError(
                f"{caller}() takes ObjectRefs, but the list has {value!r} of type {type(value).__name__}"
            )


def _checked_timeout_s(timeout: float | None, caller: str) -> float | None:
    # As in Ray, get() takes -1 for None, and wait() refuses it.
    return None if caller == "get" and timeout == -1 else seconds(timeout)


# ---------------------------------------------------------------- actors and workers


def kill(actor: ActorHandle[Any], *, no_restart: bool = True) -> None:
    """Ends an actor's process at once, whatever it does. Returns when the GCS has taken note. Calls that have
    not finished fail with ActorDiedError; a restart treats them as after a crash.

    Args:
        no_restart: False lets the actor be restarted as if it had crashed, if its max_restarts allows.

    Raises ValueError for anything but an actor's handle, and for a handle of another session; TypeError for a
    no_restart that is not True or False; RpcError if the GCS does not answer.
    """
    from ray_mono.actor import ActorHandle

    if not isinstance(actor, ActorHandle):
        raise ValueError(f"kill() takes an actor's handle, got {actor!r} of type {type(actor).__name__}")
    actor._ray_connected_core().kill_actor(actor._ray_state.actor_id, flag("no_restart", no_restart))


def get_actor(name: str, namespace: str | None = None) -> ActorHandle[Any]:
    """A handle of the actor with this name. The handle does not keep the actor alive.

    Args:
        name: as it was given by options(name=...).
        namespace: where to look; None is the namespace of this driver, or of the job that runs here.

    Raises ValueError if there is no such actor, and for a name that is no string or empty; TypeError or
    ValueError for what is no namespace; RpcError if the GCS does not answer.
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
    """The indices, from 0, of the node's GPUs that the running task or actor may use; empty on a driver."""
    return list(connected_core().context.resource_ids().get("GPU", []))
