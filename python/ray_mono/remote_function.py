"""Remote functions: what `@ray_mono.remote` makes of a function. `f.remote(...)` submits a task and does not
wait for it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from ray_mono._private.driver.auto_init import connected_core
from ray_mono._private.remote import mapping, signature
from ray_mono._private.remote.exported_code import FUNCTION, CompleteWhenUsed, ExportedCode, display_name
from ray_mono._private.remote.options import check_generator, check_task_options, task_options
from ray_mono.core_worker.process import current

if TYPE_CHECKING:
    from ray_mono.core_worker.interface import CoreInterface, Template
    from ray_mono.core_worker.object_ref import ObjectRef
    from ray_mono.dag.function_node import FunctionNode

Out = TypeVar("Out")


class RemoteFunction(CompleteWhenUsed, Generic[Out]):
    """A function that runs in worker processes. Made by `ray_mono.remote`, also before `init`.

    It can be passed on, as an argument or inside other functions, and travels by value.
    """

    def __init__(self, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
        """Raises ValueError for an `async def`, and as check_task_options does."""
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise ValueError(
                f"{display_name(function)} is an 'async def', which cannot be a remote function: wrap it in"
                " a function that calls asyncio.run(...), or make it a method of an actor"
            )
        check_task_options(options)
        if options.get("num_gpus") and options.get("max_calls") is None:
            # As in Ray: many libraries keep the memory of a GPU until their process ends.
            options = {**options, "max_calls": 1}
        code = ExportedCode(function, FUNCTION, signature.of(function, display_name(function)))
        self._set_up(code, options)

    def _set_up(self, code: ExportedCode, options: Mapping[str, Any]) -> None:
        self._code = code
        self._default_options = dict(options)
        self._signature = code.signature
        self._core: CoreInterface | None = None
        self._template: Template
        # Ray's hook for tracers. It takes the function that submits, of (args, kwargs), and returns the one
        # that is called instead.
        decorator = getattr(code.target, "__ray_invocation_decorator__", None)
        if decorator is not None:
            submit = self.remote

            def remote(*args: Any, **kwargs: Any) -> Any:
                return decorator(lambda args, kwargs: submit(*args, **kwargs))(args, kwargs)

            self.remote = remote  # type: ignore[method-assign]
        self._is_generator = inspect.isgeneratorfunction(code.target)
        check_generator(options, self._is_generator, f"{code.signature.name}()")
        num_returns = options.get("num_returns")
        self._returns_one = not isinstance(num_returns, int) or num_returns == 1
        for name in ("__name__", "__qualname__", "__module__", "__doc__"):
            setattr(self, name, getattr(code.target, name, None))

    @property
    def _function(self) -> Callable[..., Any]:
        """The plain function."""
        return self._code.target

    def remote(self, /, *args: Any, **kwargs: Any) -> Out:
        """Submits a task and does not wait for it. Arguments may be ObjectRefs: then the function gets their
        values. References inside of arguments stay references.

        It does not block, with three exceptions: the first use of ray_mono calls `init`; the first call of
        the function on a cluster sends its code to the GCS; and an argument of more than 100 KiB is put into
        the node's store, which waits while that is full.

        Returns an ObjectRef of the result; a list of them for num_returns > 1; None for num_returns=0; an
        ObjectRefGenerator for a generator; for num_returns="dynamic" an ObjectRef of a
        DynamicObjectRefGenerator.

        Raises TypeError for arguments that the function does not take, or that cannot be pickled, and for
        code that cannot be; ValueError for code of more than 95 MiB; ObjectStoreFullError; RpcError if the
        GCS does not answer; RaySystemError where this process has left its cluster. What the task raises is
        raised by `get`.
        """
        known = self._signature
        if kwargs or not known.fewest <= len(args) <= known.most:
            known.check(args, kwargs)
        core = current.core or connected_core()
        if self._core is not core:
            self._prepare(core)
        # This is what `flatten` makes. Short calls go without it, since they are the hot path.
        flat = signature.flatten(args, kwargs) if kwargs or len(args) > 1 else [None, *args] if args else []
        refs: Any = core.submit_task(self._template, flat)
        if self._returns_one:
            return refs[0]
        return refs or None  # type: ignore[return-value]

    def map(self, items: Iterable[Any], *, chunk: int | str = "auto") -> list[Out]:
        """One task for each item, which is its one positional argument: the list that `[f.remote(item) for
        item in items]` gives, made in one pass. This is ours; Ray has none.

            refs = f.map(range(100_000))

        It does not wait for the tasks, and blocks only where `.remote()` does. Each rule of `.remote()` holds
        for each task by itself: options, references, errors, retries, `cancel`. Tasks only travel together:
        chunk says how many at most, an int of at least 1. "auto" chooses by how long they take: what a worker
        runs in about 5 ms. All items are read before the first task is submitted. So an item that changes
        while later ones are read is sent as it is in the end.

        Raises TypeError and ValueError for a wrong chunk, TypeError where `items` cannot be iterated or the
        function does not take one positional argument, and what the iterator raises: then nothing was
        submitted. Raises TypeError for an item that does not pickle: then the tasks of all items before it
        were submitted, and the error has their references, in order, in `error.submitted`. So has any other
        error that `.remote()` raises, for what was submitted until then.
        """
        together = mapping.chunk_of(chunk)
        given = mapping.items_of(items, self._signature)
        if not self._returns_one or "remote" in self.__dict__:
            return mapping.one_by_one(self.remote, given)
        core = current.core or connected_core()
        if self._core is not core:
            self._prepare(core)
        if self._template.num_returns != 1:  # a generator
            return mapping.one_by_one(self.remote, given)
        refs: list[Any] = []
        with mapping.named_if_it_fails(refs):
            core.submit_tasks(self._template, given, together, refs)
        return refs

    @overload
    def options(self, *, num_returns: Literal[1], **options: Any) -> RemoteFunction[Out]: ...
    @overload
    def options(self, *, num_returns: int, **options: Any) -> RemoteFunction[list[ObjectRef[Any]]]: ...
    @overload
    def options(self, *, num_returns: int | str, **options: Any) -> RemoteFunction[Any]: ...
    @overload
    def options(self, **options: Any) -> RemoteFunction[Out]: ...

    def options(self, **options: Any) -> RemoteFunction[Any]:
        """The same function with these options in place of its own. Options that are not given stay. Raises
        as `remote(**options)` does."""
        check_task_options(options)
        other: RemoteFunction[Any] = RemoteFunction.__new__(RemoteFunction)
        other._set_up(self._code, {**self._default_options, **options})
        return other

    def bind(self, *args: Any, **kwargs: Any) -> FunctionNode:
        """A node of a graph (ray_mono.dag): a task to be submitted when the graph is executed."""
        from ray_mono.dag.function_node import FunctionNode

        return FunctionNode(self, args, kwargs, self._default_options)

    def _remote(
        self, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None, **options: Any
    ) -> Any:
        return self.options(**options).remote(*args, **(kwargs or {}))

    def _prepare(self, core: CoreInterface) -> None:
        options = task_options(self._default_options, self._signature.name, self._is_generator)
        self._template = core.task_template(self._code.exported(core), options)
        self._core = core

    if not TYPE_CHECKING:  # to a type checker it cannot be called at all

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            name = self._signature.name
            raise TypeError(
                f"remote functions cannot be called directly: instead of {name}() use {name}.remote()"
            )

    def __getstate__(self) -> dict[str, Any]:
        # It goes without what belongs to this process's connection. It is a state, and no arguments of a
        # constructor, since the function may refer to this object.
        return {"function": self._function, "options": self._default_options}

    def _restore(self, state: dict[str, Any]) -> None:
        function = state["function"]
        code = ExportedCode(function, FUNCTION, signature.of(function, display_name(function)))
        self._set_up(code, state["options"])

    def __repr__(self) -> str:
        return f"<remote function {self.__module__}.{self._signature.name}>"
