"""`@ray_mono.method`: bare, or with options, on a method of an actor class.

At run time it leaves the options on the function and returns that. To type checkers it makes a
DeclaredMethod, because they know no other way from a class to what its handles offer: through an instance the
method is called as ever, and through an `ActorProxy` it has `.remote(...)`, which gives an ObjectRef of what
the method returns.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

from ray_mono._private.remote.actor_metadata import METHOD_OPTIONS_ATTRIBUTE, is_generator_function
from ray_mono._private.remote.exported_code import display_name
from ray_mono._private.remote.options import check_generator, check_method_options

if TYPE_CHECKING:
    from ray_mono.core_worker.object_ref import ObjectRef
    from ray_mono.core_worker.object_ref_generator import ObjectRefGenerator

P = ParamSpec("P")
R = TypeVar("R")
Out = TypeVar("Out", covariant=True)

if TYPE_CHECKING:

    class _RemoteMethod(Protocol[Out]):
        def remote(self, *args: Any, **kwargs: Any) -> Out: ...
        def options(self, **options: Any) -> _RemoteMethod[Any]: ...
        def bind(self, *args: Any, **kwargs: Any) -> Any: ...

    class DeclaredMethod(Generic[P, R, Out]):
        @overload
        def __get__(self, instance: None, owner: type[Any]) -> _RemoteMethod[Out]: ...
        @overload
        def __get__(self, instance: object, owner: type[Any]) -> Callable[P, R]: ...
        def __get__(self, instance: Any, owner: type[Any]) -> Any: ...

    class _Decorator(Protocol):
        @overload
        def __call__(
            self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /
        ) -> DeclaredMethod[P, Coroutine[Any, Any, R], ObjectRef[R]]: ...
        @overload
        def __call__(  # type: ignore[overload-overlap]
            self, function: Callable[Concatenate[Any, P], Iterator[R]], /
        ) -> DeclaredMethod[P, Iterator[R], ObjectRefGenerator[R]]: ...
        @overload
        def __call__(  # type: ignore[overload-overlap]
            self, function: Callable[Concatenate[Any, P], AsyncIterator[R]], /
        ) -> DeclaredMethod[P, AsyncIterator[R], ObjectRefGenerator[R]]: ...
        @overload
        def __call__(
            self, function: Callable[Concatenate[Any, P], R], /
        ) -> DeclaredMethod[P, R, ObjectRef[R]]: ...

    class _DecoratorOfAny(Protocol):
        """With num_returns, what remote() gives depends on its value."""

        def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> DeclaredMethod[P, R, Any]: ...


@overload
def method(
    function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /
) -> DeclaredMethod[P, Coroutine[Any, Any, R], ObjectRef[R]]: ...
@overload
def method(  # type: ignore[overload-overlap]
    function: Callable[Concatenate[Any, P], Iterator[R]], /
) -> DeclaredMethod[P, Iterator[R], ObjectRefGenerator[R]]: ...
@overload
def method(  # type: ignore[overload-overlap]
    function: Callable[Concatenate[Any, P], AsyncIterator[R]], /
) -> DeclaredMethod[P, AsyncIterator[R], ObjectRefGenerator[R]]: ...
@overload
def method(function: Callable[Concatenate[Any, P], R], /) -> DeclaredMethod[P, R, ObjectRef[R]]: ...
@overload
def method(*, num_returns: int | str, **options: Any) -> _DecoratorOfAny: ...
@overload
def method(**options: Any) -> _Decorator: ...


def method(*args: Any, **options: Any) -> Any:
    """Gives a method of an actor class options: num_returns, concurrency_group, max_task_retries,
    retry_exceptions, name (which the timeline and errors show), enable_task_events,
    _generator_backpressure_num_objects. Bare, as `@method`, it only declares the method to type checkers.

    Raises TypeError or ValueError naming the option, or what it was put on.
    """
    check_method_options(options)
    if len(args) == 1 and callable(args[0]) and not options:
        return args[0]
    if args:
        given = [*map(repr, args), *(f"{name}={value!r}" for name, value in options.items())]
        raise TypeError(
            "method is used as @method on a method, or with options by name, as in @method(num_returns=2);"
            f" got method({', '.join(given)})"
        )

    def annotate(function: Any) -> Any:
        target = function.__func__ if isinstance(function, (staticmethod, classmethod)) else function
        if not callable(target):
            raise TypeError(f"@method(...) goes on a method, got {target!r} of type {type(target).__name__}")
        check_generator(options, is_generator_function(target), display_name(target))
        setattr(target, METHOD_OPTIONS_ATTRIBUTE, dict(options))
        return function

    return annotate


# Where programs know it from.
method.__module__ = "ray_mono.actor"
