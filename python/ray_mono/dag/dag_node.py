"""DAGNode: a call that has not been made, and how a graph of them is walked.

Walking never recurses along the graph: a chain of thousands of calls is fine. Every node is visited once per
walk, after all that it depends on: the nodes in its arguments, and those in `other_args_to_resolve` (the
actor of a method call, the call before it).
"""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, Self, TypeVar

from ray_mono.common.our_bug import known
from ray_mono.dag import nested_nodes
from ray_mono.dag.input_data import DAGInputData

T = TypeVar("T")

_remote: Callable[..., Any] | None = None


class DAGNode(ABC):
    """A node of a graph. Made by `bind`; not changed afterwards."""

    _is_in_context: bool | None = None
    """Of an InputNode: whether it was made in a `with`. None: this is none."""

    def __init__(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
        other_args_to_resolve: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            args, kwargs: of the call; nodes among them, or inside them, stand for their results.
            options: of the call, as for `.options()`.
            other_args_to_resolve: what else the node needs the results of.
        """
        self._bound_args = args if isinstance(args, list) else tuple(args)
        self._bound_kwargs = dict(kwargs)
        self._bound_options = dict(options)
        self._bound_other_args_to_resolve = dict(other_args_to_resolve or {})
        self._stable_uuid = uuid.uuid4().hex
        self._upstream = nested_nodes.find(self._arguments(), DAGNode)  # type: ignore[type-abstract]
        self._last_results: dict[str, Any] = {}

    def _arguments(self) -> list[Any]:
        return [list(self._bound_args), self._bound_kwargs, self._bound_other_args_to_resolve]

    # ---- what it is

    def get_args(self) -> Any:
        """The arguments, as given to `bind`."""
        return self._bound_args

    def get_kwargs(self) -> dict[str, Any]:
        """The keyword arguments, as given to `bind`."""
        return self._bound_kwargs.copy()

    def get_options(self) -> dict[str, Any]:
        """Options that differ from the defaults."""
        return self._bound_options.copy()

    def get_other_args_to_resolve(self) -> dict[str, Any]:
        """What the node needs besides its arguments."""
        return self._bound_other_args_to_resolve.copy()

    def get_stable_uuid(self) -> str:
        """32 hexadecimal digits that name the node, and its copies by apply_recursive."""
        return self._stable_uuid

    # ---- running

    def execute(self, *args: Any, _ray_cache_refs: bool = False, **kwargs: Any) -> Any:
        """Makes the calls of the graph that ends here; returns what the last of them returned at once, mostly
        a reference.

        Args:
            args, kwargs: what InputNode stands for. A single positional argument stands for itself.
            _ray_cache_refs: keep the references of all nodes for get_object_refs_from_last_execute().

        Every execution makes its own calls, and its own actors where actor classes are bound. Raises
        TypeError for arguments that a function does not take, AssertionError for an InputNode that was not
        made in a `with`, or more than one, and what reading an input's attribute or index raises.
        """
        nodes = self._in_order()
        _check_inputs(nodes)
        inputs = args[0] if len(args) == 1 and not kwargs else DAGInputData(*args, **kwargs)
        results: dict[str, Any] = {}
        for node in nodes:
            resolved = node._resolved(lambda each: results[each._stable_uuid])
            results[node._stable_uuid] = node._execute(*resolved, inputs)
        self._last_results = results if _ray_cache_refs else {}
        return results[self._stable_uuid]

    @abstractmethod
    def _execute(self, args: Any, kwargs: Any, others: Any, inputs: Any) -> Any:
        """Makes the call with results in the place of nodes; `inputs` is what the graph was executed with."""

    async def get_object_refs_from_last_execute(self) -> dict[str, Any]:
        """Results of all nodes by their uuid, after execute(_ray_cache_refs=True); empty after one
        without."""
        return self._last_results.copy()

    def clear_cache(self) -> None:
        """Forgets the references kept for get_object_refs_from_last_execute()."""
        self._last_results = {}

    def experimental_compile(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises NotImplementedError: compiled graphs are not part of ray_mono."""
        raise NotImplementedError(
            "experimental_compile(): compiled graphs are not part of ray_mono; execute() runs the same"
            " graph, with calls that are"
            " made each time"
        )

    def with_tensor_transport(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises NotImplementedError: it is about compiled graphs."""
        raise NotImplementedError(
            "with_tensor_transport(): compiled graphs are not part of ray_mono; execute() passes tensors as"
            " other values"
        )

    # ---- walking

    def apply_recursive(self, fn: Callable[[DAGNode], T]) -> T:
        """fn(copy of this node), after fn was applied to all nodes before it and its results put in their
        places."""
        results: dict[str, T] = {}
        for node in self._in_order():
            args, kwargs, others = node._resolved(lambda each: results[each._stable_uuid])
            results[node._stable_uuid] = fn(node._copy(args, kwargs, node._bound_options, others))
        return results[self._stable_uuid]

    def traverse_and_apply(self, fn: Callable[[DAGNode], Any]) -> None:
        """Calls fn with every node of the graph, each once, those before it first."""
        for node in self._in_order():
            fn(node)

    def apply_functional(
        self,
        source_input_list: Any,
        predicate_fn: Callable[[DAGNode], bool],
        apply_fn: Callable[[DAGNode], Any],
    ) -> Any:
        """A copy of source_input_list in which apply_fn(node) stands for each node that predicate_fn is
        true for."""

        def substitute(node: DAGNode) -> Any:
            return apply_fn(node) if predicate_fn(node) else node

        return nested_nodes.replace(source_input_list, DAGNode, substitute)  # type: ignore[type-abstract]

    def _in_order(self) -> list[DAGNode]:
        """All nodes that this one depends on, and itself at the end: each after those that it depends on."""
        ordered: dict[str, DAGNode] = {}
        stack: list[tuple[DAGNode, int]] = [(self, 0)]
        while stack:
            node, position = stack.pop()
            if node._stable_uuid in ordered:
                continue
            if position < len(node._upstream):
                stack.append((node, position + 1))
                stack.append((node._upstream[position], 0))
            else:
                ordered[node._stable_uuid] = node
        return list(ordered.values())

    def _resolved(self, substitute: Callable[[DAGNode], Any]) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        if not self._upstream:
            return self._bound_args, self._bound_kwargs, self._bound_other_args_to_resolve
        every = self._arguments()
        args, kwargs, others = nested_nodes.replace(every, DAGNode, substitute)  # type: ignore[type-abstract]
        return args, kwargs, others

    def _copy(
        self,
        new_args: Any,
        new_kwargs: dict[str, Any],
        new_options: dict[str, Any],
        new_other_args_to_resolve: dict[str, Any],
    ) -> Self:
        """The same node with other arguments."""
        copied = type(self).__new__(type(self))
        copied.__dict__.update(self.__dict__)
        copied._last_results = {}
        stable_uuid = self._stable_uuid
        DAGNode.__init__(copied, new_args, new_kwargs, new_options, new_other_args_to_resolve)
        copied._stable_uuid = stable_uuid
        return copied

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last_results": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @abstractmethod
    def _title(self) -> str:
        """What the node calls, for people."""

    def __str__(self) -> str:
        parts = [repr(arg) for arg in self._bound_args]
        parts += [f"{name}={value!r}" for name, value in self._bound_kwargs.items()]
        return f"{self._title()}({', '.join(parts)})"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._title()} {self._stable_uuid[:8]}>"


def _check_inputs(nodes: Iterable[DAGNode]) -> None:
    """Raises AssertionError unless there is at most one InputNode, and it was made in a `with`: Ray's
    rule, and its error."""
    inputs = [node._is_in_context for node in nodes if node._is_in_context is not None]
    if len(inputs) > 1:
        raise AssertionError(f"a graph has one InputNode, but this one has {len(inputs)}")
    if not all(inputs):
        raise AssertionError("an InputNode is made in a with statement: with InputNode() as name: ...")


def made_remote(target: Any, options: Mapping[str, Any]) -> Any:
    """What `remote` makes of a plain function or class."""
    remote = known(_remote, "`remote`, which the package hands in")
    return remote(**options)(target) if options else remote(target)


def hand_in_remote(remote: Callable[..., Any]) -> None:
    """The package gives its modules `remote`, which stands above them, before any of them runs."""
    global _remote
    _remote = remote
