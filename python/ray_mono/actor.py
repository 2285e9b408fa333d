"""Actors: what `@ray_mono.remote` makes of a class, and the handles through which its instances are called.

    A = remote(class)   ActorClass       A.remote(...) makes an actor and returns its handle
    a                   ActorHandle      whoever has one may call; it travels in arguments, values, closures
    a.method            ActorMethod      a.method.remote(...) submits a call and does not wait for it

A handle holds a reference to the actor's creation object. With the last handle that reference ends, and with
it the actor, unless it is detached. Handles from `get_actor`, and the actor's own, hold none and keep nothing
alive.
"""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ray_mono._private.driver.auto_init import connected_core
from ray_mono._private.remote import actor_metadata, mapping, signature
from ray_mono._private.remote.actor_metadata import (
    BUILT_IN_METHODS,
    ActorMetadata,
    AnyActorHandle,
    MethodMetadata,
)
from ray_mono._private.remote.exported_code import ACTOR_CLASS, CompleteWhenUsed, ExportedCode, display_name
from ray_mono._private.remote.method_decorator import method as method
from ray_mono._private.remote.options import (
    actor_options,
    call_rules,
    check_actor_options,
    check_generator,
    check_method_options,
    method_options,
)
from ray_mono.common.exceptions import ActorHandleNotFoundError
from ray_mono.common.ids import ActorID
from ray_mono.common.our_bug import known
from ray_mono.core_worker.process import current

if TYPE_CHECKING:
    from ray_mono.core_worker.interface import CoreInterface, HeldActor, Template
    from ray_mono.core_worker.object_ref import ObjectRef
    from ray_mono.dag.class_node import ClassNode

T = TypeVar("T")


class ActorClassInheritanceException(TypeError):
    """An actor class was inherited from."""


class ActorClass(CompleteWhenUsed, Generic[T]):
    """A class whose instances are actors: processes of their own. Made by `ray_mono.remote`."""

    def __init__(self, plain_class: type[T], options: Mapping[str, Any]) -> None:
        """Raises as check_actor_options does, and for wrong @method options."""
        check_actor_options(options)
        code = ExportedCode(plain_class, ACTOR_CLASS, signature.of(plain_class, display_name(plain_class)))
        self._set_up(code, actor_metadata.of_class(plain_class), options)

    def _set_up(self, code: ExportedCode, metadata: ActorMetadata, options: Mapping[str, Any]) -> None:
        self._code = code
        self._metadata = metadata
        self._default_options = dict(options)
        for name in ("__name__", "__qualname__", "__module__", "__doc__"):
            setattr(self, name, getattr(code.target, name, None))

    if not TYPE_CHECKING:  # which would take it for a sign that every name exists

        def __getattr__(self, name: str) -> Any:
            """What the plain class has: constants, class and static methods, and methods as functions.

            Pickle is told that there is nothing when it asks whether code can be found by its name. A worker
            would find there what the file has, if it can import that at all, and below a decorated class. So
            all of an actor class travels by value.
            """
            is_pickle = sys._getframe(1).f_code.co_name == "_getattribute"
            if "_code" not in self.__dict__ or name.startswith("__") or is_pickle:
                return super().__getattr__(name)
            return getattr(self._code.target, name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(self._code.target)})

    @property
    def __ray_actor_class__(self) -> type[T]:
        """The plain class."""
        return self._code.target  # type: ignore[return-value]

    @property
    def __ray_metadata__(self) -> types.SimpleNamespace:
        """modified_class (the plain class, for tests without a cluster) and class_name, where programs of
        Ray look for them."""
        return types.SimpleNamespace(modified_class=self._code.target, class_name=self._metadata.class_name)

    def remote(self, /, *args: Any, **kwargs: Any) -> ActorHandle[T] | Any:
        """Makes an actor and returns its handle. It does not wait until the actor runs: its calls do.

        For an actor with a name it waits until the GCS has answered, since the name may be taken; it does not
        wait for arguments. Otherwise it blocks no more than RemoteFunction.remote does. If the actor cannot
        be made later, its calls fail with ActorDiedError or ActorUnschedulableError.

        Raises TypeError for arguments that the constructor does not take, or that cannot be pickled, and for
        a class that cannot be; ActorAlreadyExistsError, a ValueError, if the name is taken
        (get_if_exists=True returns that actor instead); ValueError for options that do not go together;
        ObjectStoreFullError; RpcError or RaySystemError if the GCS does not answer, or this process has left
        its cluster.
        """
        self._code.signature.check(args, kwargs)
        core = connected_core()
        options = self._default_options
        if options.get("lifetime") is None:
            options = {**options, "lifetime": core.default_actor_lifetime}
        metadata = dataclasses.replace(
            self._metadata,
            max_task_retries=options.get("max_task_retries") or 0,
            enable_task_events=options.get("enable_task_events") is not False,
            rules=call_rules(options, self._metadata.is_asyncio),
            concurrency_groups=tuple(options.get("concurrency_groups") or ()),
        )
        state = core.create_actor(
            self._code.exported(core),
            actor_options(
                options,
                class_name=metadata.class_name,
                is_asyncio=metadata.is_asyncio,
                method_groups=metadata.method_groups(),
                namespace=core.namespace,
                handle_metadata=metadata.dumps(),
            ),
            signature.flatten(args, kwargs),
        )
        return ActorHandle(core, state, state.creation_ref, metadata)

    def options(self, **options: Any) -> ActorClass[T]:
        """The same class with these options in place of its own. Options that are not given stay. Raises as
        `remote(**options)` does."""
        merged = {**self._default_options, **options}
        check_actor_options(merged)
        other: ActorClass[T] = ActorClass.__new__(ActorClass)
        other._set_up(self._code, self._metadata, merged)
        return other

    def bind(self, *args: Any, **kwargs: Any) -> ClassNode:
        """A node of a graph (ray_mono.dag): an actor to be made when the graph is executed."""
        from ray_mono.dag.class_node import ClassNode

        return ClassNode(self, args, kwargs, self._default_options)

    def _remote(
        self, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None, **options: Any
    ) -> ActorHandle[T]:
        return self.options(**options).remote(*args, **(kwargs or {}))

    if not TYPE_CHECKING:  # to a type checker it cannot be called at all

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            name = self._metadata.class_name
            raise TypeError(
                f"actors cannot be instantiated directly: instead of {name}() use {name}.remote()"
            )

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        name = self._metadata.class_name
        raise ActorClassInheritanceException(
            f"{name} is an actor class, which cannot be inherited from: inherit from the plain class and"
            " make the result remote"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"class": self.__ray_actor_class__, "options": self._default_options}

    def _restore(self, state: dict[str, Any]) -> None:
        plain_class = state["class"]
        code = ExportedCode(plain_class, ACTOR_CLASS, signature.of(plain_class, display_name(plain_class)))
        self._set_up(code, actor_metadata.of_class(plain_class), state["options"])

    def __repr__(self) -> str:
        return f"<actor class {self.__module__}.{self._metadata.class_name}>"


class ActorHandle(AnyActorHandle, Generic[T]):
    """Calls one actor: `handle.method.remote(...)`. Handles of the same actor are equal."""

    def __init__(
        self,
        core: CoreInterface,
        state: HeldActor,
        creation_ref: ObjectRef[Any] | None,
        metadata: ActorMetadata,
    ) -> None:
        """creation_ref: keeps the actor alive; None for a handle that does not."""
        self._ray_core = core
        self._ray_state = state
        self._ray_creation_ref = creation_ref
        self._ray_metadata = metadata
        # Templates of calls without options of their own, by method: calls are the hot path.
        self._ray_templates: dict[str, Template] = {}

    @property
    def _actor_id(self) -> ActorID:
        return ActorID(self._ray_state.actor_id)

    _ray_actor_id = _actor_id

    def __getattr__(self, name: str) -> ActorMethod:
        # Called for names that are not above. One of ours is missing only while a handle is being made.
        if name.startswith("_ray_"):
            raise AttributeError(name)
        metadata = self._ray_metadata
        method = metadata.methods.get(name) or metadata.method(name)
        if method is None:
            known = ", ".join(each for each in metadata.methods if not each.startswith("__")) or "none"
            raise AttributeError(
                f"{metadata.class_name!r} actors have no method {name!r} (attributes are not visible from"
                f" outside); methods: {known}"
            )
        return (ActorMethod if method.decorator is None else _DecoratedMethod)(self, name, method, None)

    def __dir__(self) -> list[str]:
        return sorted([*self._ray_metadata.methods, *BUILT_IN_METHODS])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorHandle) and self._ray_state.actor_id == other._ray_state.actor_id

    def __hash__(self) -> int:
        return hash(self._ray_state.actor_id)

    def __repr__(self) -> str:
        return f"Actor({self._ray_metadata.class_name}, {self._ray_state.actor_id.hex()})"

    def __reduce__(self) -> tuple[Any, ...]:
        # The reference travels inside, and is counted like any other.
        return _handle_arrived, (self._ray_state.actor_id, self._ray_creation_ref, self._ray_metadata)

    def __copy__(self) -> ActorHandle[T]:
        return self

    def __deepcopy__(self, memo: Any) -> ActorHandle[T]:
        return self

    def _ray_connected_core(self) -> CoreInterface:
        if current.core is not self._ray_core:
            if current.is_fork():
                current.require()
            raise ActorHandleNotFoundError(
                f"{self!r} belongs to a session that is over, or to another process: make it again, or use"
                " get_actor()"
            )
        return self._ray_core


# A type for annotations of handles: by it type checkers know the methods that `@method` declares.
# `ActorClass.remote` returns `| Any`, so that a variable that is given the handle keeps this type.
ActorProxy = ActorHandle[T] | type[T]


def _handle_arrived(
    actor_id: bytes, creation_ref: ObjectRef[Any] | None, metadata: ActorMetadata
) -> ActorHandle[Any]:
    core = current.require()
    state = core.hold_actor(actor_id, creation_ref, metadata.rules)
    return ActorHandle(core, state, creation_ref, metadata)


def weak_handle(core: CoreInterface, actor_id: bytes, metadata: ActorMetadata) -> ActorHandle[Any]:
    """A handle that does not keep the actor alive: from get_actor, and an actor's own."""
    state = core.hold_actor(actor_id, None, metadata.rules)
    return ActorHandle(core, state, None, metadata)


class ActorMethod:
    """One method of one actor, to be called with `.remote(...)`."""

    __slots__ = ("_handle", "_metadata", "_name", "_options")

    def __init__(
        self, handle: ActorHandle[Any], name: str, metadata: MethodMetadata, options: Mapping[str, Any] | None
    ) -> None:
        """options: for the calls by this object alone; None for the method's own."""
        self._handle = handle
        self._name = name
        self._metadata = metadata
        self._options = options

    def remote(self, /, *args: Any, **kwargs: Any) -> Any:
        """Submits a call and does not wait for it. Calls of one caller run in the order in which they were
        made, unless the actor runs several at once or has allow_out_of_order_execution.

        Arguments and what it returns are as for RemoteFunction.remote. It blocks only to put a large argument
        into a store that is full.

        Raises TypeError for arguments that the method does not take, or that cannot be pickled;
        PendingCallsLimitExceeded if max_pending_calls calls of this process wait already;
        ActorHandleNotFoundError, a ValueError, for a handle of another session or process;
        ObjectStoreFullError; RaySystemError. What the method raises is raised by `get`, and so are
        ActorDiedError and ActorUnavailableError.
        """
        known = self._metadata.signature
        if kwargs or not known.fewest <= len(args) <= known.most:
            known.check(args, kwargs)
        handle = self._handle
        core = handle._ray_core
        if current.core is not core:
            core = handle._ray_connected_core()
        template = handle._ray_templates.get(self._name) if self._options is None else None
        if template is None:
            template = self._make_template(core)
        # This is what `flatten` makes. Short calls go without it, since they are the hot path.
        flat = signature.flatten(args, kwargs) if kwargs or len(args) > 1 else [None, *args] if args else []
        refs = core.submit_actor_task(handle._ray_state, template, flat)
        if template.num_returns == 1 or template.num_returns < 0:
            return refs[0]
        return refs or None

    def map(self, items: Iterable[Any], *, chunk: int | str = "auto") -> list[Any]:
        """One call for each item, which is its one positional argument: the list that `[a.m.remote(item) for
        item in items]` gives, made in one pass. This is ours; Ray has none.

            refs = actor.method.map(range(100_000))

        It does not wait for the calls, and blocks only where `.remote()` does. Each rule of `.remote()` holds
        for each call by itself: order, options, references, errors, retries, `cancel`. Calls only travel
        together: chunk says how many at most, an int of at least 1; "auto" leaves it to the core. All items
        are read before the first call is submitted: one that changes meanwhile is sent as it is in the end.

        Raises TypeError and ValueError for a wrong chunk, TypeError where `items` cannot be iterated or the
        method does not take one positional argument, and what the iterator raises: then nothing was
        submitted. Raises TypeError for an item that does not pickle, and PendingCallsLimitExceeded: then the
        calls of all items before it were submitted, and the error has their references, in order, in
        `error.submitted`. So has any other error that `.remote()` raises, for what was submitted until then.
        """
        together = mapping.chunk_of(chunk)
        given = mapping.items_of(items, self._metadata.signature)
        handle = self._handle
        core = handle._ray_connected_core()
        template = handle._ray_templates.get(self._name) if self._options is None else None
        if template is None:
            template = self._make_template(core)
        if template.num_returns != 1 or self._metadata.decorator is not None:
            return mapping.one_by_one(self.remote, given)
        refs: list[Any] = []
        with mapping.named_if_it_fails(refs):
            core.submit_actor_tasks(handle._ray_state, template, given, together, refs)
        return refs

    def options(self, **options: Any) -> ActorMethod:
        """The same method with these options in place of its own. Raises as `@method(**options)` does, and
        ValueError for a concurrency group that the actor does not have."""
        check_method_options(options)
        check_generator(options, self._metadata.is_generator, f"{self._metadata.signature.name}()")
        self._handle._ray_metadata.check_group(options.get("concurrency_group"))
        return type(self)(self._handle, self._name, self._metadata, {**(self._options or {}), **options})

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        """A node of a graph (ray_mono.dag): a call to be made when the graph is executed; a tuple of nodes
        for num_returns > 1.

        Raises TypeError for arguments that the method does not take.
        """
        from ray_mono.dag.class_node import bind_method

        self._metadata.signature.check(args, kwargs)
        options = {**self._metadata.options, **(self._options or {})}
        return bind_method(self._handle, self._name, options, args, kwargs)

    def _remote(
        self, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None, **options: Any
    ) -> Any:
        return self.options(**options).remote(*args, **(kwargs or {}))

    def _make_template(self, core: CoreInterface) -> Template:
        options = {**self._metadata.options, **(self._options or {})}
        chosen = method_options(
            options,
            self._handle._ray_metadata.max_task_retries,
            self._metadata.is_generator,
            self._handle._ray_metadata.enable_task_events,
        )
        template = core.method_template(self._name, self._handle._ray_metadata.class_name, **chosen)
        if self._options is None:
            self._handle._ray_templates[self._name] = template
        return template

    if not TYPE_CHECKING:  # to a type checker it cannot be called at all

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            raise TypeError(
                f"actor methods cannot be called directly: instead of object.{self._name}() use"
                f" object.{self._name}.remote()"
            )

    def __repr__(self) -> str:
        return f"<method {self._name} of {self._handle!r}>"


class _DecoratedMethod(ActorMethod):
    """A method with an invocation decorator, which is called for each call."""

    __slots__ = ()

    def remote(self, /, *args: Any, **kwargs: Any) -> Any:
        def submit(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
            return ActorMethod.remote(self, *args, **kwargs)

        decorator = known(self._metadata.decorator, "the method's decorator")
        return decorator(submit)(args or [], kwargs)  # a list, as in Ray


def exit_actor() -> None:
    """Ends the actor that calls it, for good: it is not restarted. No other call begins.

    The call that calls it ends here, by an exception that is no Exception, and is not answered. Its caller,
    and those whose calls have not finished, get ActorDiedError. A thread that the actor has started itself
    ends here by SystemExit, and the actor after the call that runs then.

    Raises TypeError outside of an actor, and RaySystemError where this process is not connected.
    """
    current.require().exit_actor()
