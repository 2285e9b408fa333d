"""Actors in graphs: ClassNode is an actor that every execution makes anew, ClassMethodNode a call of one.

Calls of a ClassNode's methods run in the order in which they were bound, also where one does not use
another's result: each depends on the one bound before it. Calls of a living actor's methods
(`handle.method.bind`) run in the order in which the graph leads to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

from ray_mono._private.remote.actor_metadata import AnyActorHandle
from ray_mono.dag.dag_node import DAGNode, made_remote
from ray_mono.dag.input_node import InputAttributeNode, InputNode

# Keys of other_args_to_resolve.
PARENT_CLASS_NODE_KEY = "parent_class_node"
PREV_CLASS_METHOD_CALL_KEY = "prev_class_method_call"
IS_CLASS_METHOD_OUTPUT_KEY = "is_class_method_output"


class _ActorClass(Protocol):
    """What a node needs of an actor class, which is defined above this module."""

    @property
    def __ray_actor_class__(self) -> type[Any]: ...
    def remote(self, /, *args: Any, **kwargs: Any) -> Any: ...


class ClassNode(DAGNode):
    """Made by `Class.bind(...)`; its result is a handle, and `node.method.bind(...)` are calls of that
    actor."""

    def __init__(
        self,
        cls: type | _ActorClass,
        cls_args: Sequence[Any],
        cls_kwargs: Mapping[str, Any],
        cls_options: Mapping[str, Any],
        other_args_to_resolve: Mapping[str, Any] | None = None,
    ) -> None:
        """cls: an actor class with cls_options, or a plain class, which is given them.

        Raises ValueError for an InputNode among the arguments.
        """
        self._actor_class: _ActorClass = made_remote(cls, cls_options) if isinstance(cls, type) else cls
        self._last_call: ClassMethodNode | None = None
        super().__init__(cls_args, cls_kwargs, cls_options, other_args_to_resolve)
        if any(isinstance(node, (InputNode, InputAttributeNode)) for node in self._upstream):
            raise ValueError(
                f"{self._title()}.bind(): an InputNode cannot be an argument of an actor's constructor: pass"
                " it to a method, or"
                " to a function whose result the constructor takes"
            )

    def _execute(self, args: Any, kwargs: Any, others: Any, inputs: Any) -> Any:
        return self._actor_class.remote(*args, **kwargs)

    def __getattr__(self, name: str) -> _UnboundClassMethodNode:
        # Called for what a node has not itself. Names of ours are missing only while one is being made.
        if name in ("_actor_class", "__setstate__", "__getstate__"):
            raise AttributeError(name)
        plain_class = self._actor_class.__ray_actor_class__
        if not name.startswith("__ray_"):
            getattr(plain_class, name)
        return _UnboundClassMethodNode(self._bind_call, name, {})

    def _bind_call(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> ClassMethodNode:
        """A call of the actor's method, which follows the call bound before it."""
        others = {PARENT_CLASS_NODE_KEY: self, PREV_CLASS_METHOD_CALL_KEY: self._last_call}
        self._last_call = ClassMethodNode(name, args, kwargs, options, others)
        return self._last_call

    def _title(self) -> str:
        return self._actor_class.__ray_actor_class__.__name__


class _UnboundClassMethodNode:
    """`node.method`, before `bind`."""

    def __init__(self, bind: Callable[..., ClassMethodNode], name: str, options: dict[str, Any]) -> None:
        """bind(name, args, kwargs, options): the actor's next call."""
        self._bind = bind
        self._name = name
        self._options = options

    def options(self, **options: Any) -> _UnboundClassMethodNode:
        """The same method with options of the call, as ActorMethod.options."""
        return _UnboundClassMethodNode(self._bind, self._name, {**self._options, **options})

    def bind(self, *args: Any, **kwargs: Any) -> ClassMethodNode:
        """A call of the method, which follows the call bound before it."""
        return self._bind(self._name, args, kwargs, self._options)

    def __getattr__(self, name: str) -> Any:
        if name == "remote":
            raise AttributeError(
                f"{self._name}.remote(): the actor does not exist before execute(); use {self._name}.bind()"
            )
        raise AttributeError(
            f"a method of a graph's actor has no attribute {name!r}: it has bind and options"
        )


class ClassMethodNode(DAGNode):
    """A call of an actor's method, or (is_class_method_output) one of the several values that such a call
    returns."""

    def __init__(
        self,
        method_name: str,
        method_args: Sequence[Any],
        method_kwargs: Mapping[str, Any],
        method_options: Mapping[str, Any],
        other_args_to_resolve: Mapping[str, Any],
    ) -> None:
        self._method_name = method_name
        super().__init__(method_args, method_kwargs, method_options, other_args_to_resolve)

    def get_method_name(self) -> str:
        return self._method_name

    @property
    def num_returns(self) -> int | None:
        """How many values the call returns; None where only the class knows."""
        call = self.class_method_call or self
        return cast("int | None", call._bound_options.get("num_returns"))

    @property
    def is_class_method_call(self) -> bool:
        return not self.is_class_method_output

    @property
    def is_class_method_output(self) -> bool:
        return bool(self._bound_other_args_to_resolve.get(IS_CLASS_METHOD_OUTPUT_KEY))

    @property
    def class_method_call(self) -> ClassMethodNode | None:
        """The call that this is one of the values of."""
        return self._bound_args[0] if self.is_class_method_output else None

    @property
    def output_idx(self) -> int | None:
        """Which of the values this is."""
        return self._bound_args[1] if self.is_class_method_output else None

    def _execute(self, args: Any, kwargs: Any, others: Any, inputs: Any) -> Any:
        if self.is_class_method_output:
            values, index = args
            return values[index]
        method = getattr(others[PARENT_CLASS_NODE_KEY], self._method_name)
        if self._bound_options:
            method = method.options(**self._bound_options)
        return method.remote(*args, **kwargs)

    def _title(self) -> str:
        if self.is_class_method_output:
            return f"output {self.output_idx}"
        return self._method_name


def bind_method(
    handle: AnyActorHandle,
    method_name: str,
    options: Mapping[str, Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Any:
    """What handle.method.bind(...) returns: a node, or one for each value where the call returns several."""
    others = {PARENT_CLASS_NODE_KEY: handle, PREV_CLASS_METHOD_CALL_KEY: None}
    call = ClassMethodNode(method_name, args, kwargs, options, others)
    num_returns = options.get("num_returns")
    if not isinstance(num_returns, int) or num_returns <= 1:
        return call
    outputs = {IS_CLASS_METHOD_OUTPUT_KEY: True, PARENT_CLASS_NODE_KEY: handle}
    return tuple(
        ClassMethodNode(f"return_idx_{index}", (call, index), {}, {}, outputs) for index in range(num_returns)
    )
