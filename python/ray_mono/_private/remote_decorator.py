"""`@ray_mono.remote`: bare, or with options; on a function or on a class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

from ray_mono.actor import ActorClass
from ray_mono.remote_function import RemoteFunction

if TYPE_CHECKING:
    from ray_mono.core_worker.object_ref import ObjectRef
    from ray_mono.core_worker.object_ref_generator import ObjectRefGenerator

R = TypeVar("R")
T = TypeVar("T")
Y = TypeVar("Y")


class _Decorator(Protocol):
    @overload
    def __call__(self, target: type[T]) -> ActorClass[T]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, target: Callable[..., Iterator[Y]]
    ) -> RemoteFunction[ObjectRefGenerator[Y]]: ...
    @overload
    def __call__(self, target: Callable[..., R]) -> RemoteFunction[ObjectRef[R]]: ...


class _DecoratorOfAny(Protocol):
    """With num_returns, what remote() gives depends on its value."""

    def __call__(self, target: Callable[..., Any]) -> RemoteFunction[Any]: ...


@overload
def remote(target: type[T], /) -> ActorClass[T]: ...  # type: ignore[overload-overlap]
@overload
def remote(  # type: ignore[overload-overlap]
    target: Callable[..., Iterator[Y]], /
) -> RemoteFunction[ObjectRefGenerator[Y]]: ...
@overload
def remote(target: Callable[..., R], /) -> RemoteFunction[ObjectRef[R]]: ...
@overload
def remote(*, num_returns: int | str, **options: Any) -> _DecoratorOfAny: ...
@overload
def remote(**options: Any) -> _Decorator: ...


def remote(*targets: Any, **options: Any) -> Any:
    """Makes a function a remote function, or a class an actor class. With options it returns the decorator
    that does.

    Options of both: num_cpus, num_gpus (numbers; a task takes 1 CPU by default), memory (bytes), resources
    (a dict from names to numbers), accelerator_type, name, runtime_env, scheduling_strategy, label_selector,
    fallback_strategy, enable_task_events.

    Options of functions: num_returns (a whole number; for generators "streaming", which is their default, or
    "dynamic"), max_retries (3 by default, -1 for no limit), retry_exceptions (True, or a list of types),
    max_calls (with num_gpus 1 by default), _generator_backpressure_num_objects.

    Options of classes: object_store_memory (bytes), namespace, lifetime ("detached" or "non_detached"),
    get_if_exists, max_restarts and max_task_retries (0 by default, -1 for no limit), max_concurrency (1 by
    default, 1000 for async actors), concurrency_groups, max_pending_calls, allow_out_of_order_execution.

    Raises TypeError, ValueError or NotImplementedError, which names the option and what it accepts.
    """
    if len(targets) == 1 and not options:
        return _make(targets[0], {})
    if targets or not options:
        given = [*map(repr, targets), *(f"{name}={value!r}" for name, value in options.items())]
        raise TypeError(
            "remote is used as @remote on a function or class, or with options by name, as in"
            " @remote(num_cpus=2);"
            f" got remote({', '.join(given)})"
        )
    return lambda target: _make(target, options)


def _make(target: Any, options: dict[str, Any]) -> RemoteFunction[Any] | ActorClass[Any]:
    if inspect.isclass(target):
        return ActorClass(target, options)
    if inspect.isroutine(target):
        return RemoteFunction(target, options)
    kind = "is remote already" if isinstance(target, (RemoteFunction, ActorClass)) else "is neither"
    raise TypeError(f"remote takes a function or a class; {target!r} of type {type(target).__name__} {kind}")
