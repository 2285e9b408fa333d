"""What a handle must know about an actor's class: its methods, how they may be called, and their options.

It is made once from the class, travels inside handles, and is stored with the actor for `get_actor`. It holds
no code, except what the program has put around calls. The class itself is needed only where the actor runs.
"""

from __future__ import annotations

import dataclasses
import inspect
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ray_mono._private.remote import signature
from ray_mono._private.remote.exported_code import display_name
from ray_mono._private.remote.options import check_method_options
from ray_mono._private.remote.signature import CallSignature
from ray_mono.common import code_pickler
from ray_mono.core_worker.options import CallRules

# Where @method leaves its options on a function.
METHOD_OPTIONS_ATTRIBUTE = "__ray_mono_method__"
_NOTHING = CallSignature("")
_FUNCTION_AND_ARGUMENTS = CallSignature("", ("fn",), 1, 1, has_var_positional=True, has_var_keyword=True)
# Methods that every actor has, and what they take; the process that runs it provides them.
BUILT_IN_METHODS = {
    "__ray_terminate__": _NOTHING,
    "__ray_call__": _FUNCTION_AND_ARGUMENTS,
    "__ray_ready__": _NOTHING,
}


class AnyActorHandle:
    """The base of ActorHandle, for code that only asks whether a value is one."""

    __slots__ = ()


@dataclass(frozen=True)
class MethodMetadata:
    """One method of an actor class."""

    signature: CallSignature
    options: Mapping[str, Any] = field(default_factory=dict)
    """As given to @method: checked, defaults left out."""
    is_generator: bool = False
    decorator: Callable[..., Any] | None = None
    """Ray's hook for tracers: it takes the function that submits, and returns what is called instead."""


@dataclass(frozen=True)
class ActorMetadata:
    """The part of an actor class that callers need."""

    module_name: str
    class_name: str
    is_asyncio: bool
    methods: Mapping[str, MethodMetadata]
    max_task_retries: int = 0
    """For methods that have no such option of their own."""
    enable_task_events: bool = True
    """For methods that have no such option of their own."""
    rules: CallRules = CallRules()
    concurrency_groups: tuple[str, ...] = ()

    def method(self, name: str) -> MethodMetadata | None:
        found = self.methods.get(name)
        if found is None and name in BUILT_IN_METHODS:
            named = dataclasses.replace(BUILT_IN_METHODS[name], name=f"{self.class_name}.{name}")
            found = MethodMetadata(named)
        return found

    def method_groups(self) -> dict[str, str]:
        """Concurrency group by name of the methods that have one."""
        groups = ((name, method.options.get("concurrency_group")) for name, method in self.methods.items())
        return {name: group for name, group in groups if group}

    def check_group(self, name: str | None) -> None:
        """Raises ValueError for a concurrency group that the actor does not have."""
        if name and name not in self.concurrency_groups:
            known = ", ".join(sorted(self.concurrency_groups)) or "none"
            raise ValueError(f"{self.class_name} has no concurrency group {name!r}; it has: {known}")

    def dumps(self) -> bytes:
        """For the table of actors. By value, since options may hold exception types of the program's."""
        return code_pickler.dumps(self, protocol=5)

    @staticmethod
    def loads(data: bytes) -> ActorMetadata:
        """Raises ValueError if the actor was made without a handle's data, e.g. by another language."""
        if not data:
            raise ValueError(
                "the actor was stored without what a handle of it needs:"
                " it is no Python actor of this version"
            )
        metadata: ActorMetadata = pickle.loads(data)
        return metadata


def of_class(actor_class: type) -> ActorMetadata:
    """Raises as check_method_options does."""
    class_name = display_name(actor_class)
    methods = {}
    for name, static in inspect.getmembers_static(actor_class):
        if static is vars(object).get(name):
            continue  # what every object has
        function = _function_of(static)
        if function is None or name == "__init__":
            continue
        options = dict(getattr(function, METHOD_OPTIONS_ATTRIBUTE, {}))
        check_method_options(options)
        methods[name] = MethodMetadata(
            signature.of_method(actor_class, name, f"{class_name}.{name}"),
            options,
            is_generator_function(function),
            getattr(function, "__ray_invocation_decorator__", None),
        )
    return ActorMetadata(
        module_name=actor_class.__module__,
        class_name=class_name,
        is_asyncio=any(_is_async(actor_class, name) for name in ("__init__", *methods)),
        methods=methods,
    )


def is_generator_function(method: Any) -> bool:
    """What a decorator has wrapped (functools.wraps) counts, as in Ray."""
    function = inspect.unwrap(method)
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def _function_of(static: Any) -> Callable[..., Any] | None:
    function = static.__func__ if isinstance(static, (staticmethod, classmethod)) else static
    return function if inspect.isroutine(function) else None


def _is_async(actor_class: type, name: str) -> bool:
    function = _function_of(inspect.getattr_static(actor_class, name))
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
