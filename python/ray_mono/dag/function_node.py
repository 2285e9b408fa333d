"""FunctionNode: a call of a remote function that has not been made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ray_mono.dag.dag_node import DAGNode, made_remote


class _RemoteFunction(Protocol):
    """What a node needs of a remote function, which is defined above this module."""

    @property
    def _function(self) -> Callable[..., Any]: ...
    def remote(self, /, *args: Any, **kwargs: Any) -> Any: ...


class FunctionNode(DAGNode):
    """Made by `f.bind(...)`."""

    def __init__(
        self,
        func_body: Callable[..., Any] | _RemoteFunction,
        func_args: Sequence[Any],
        func_kwargs: Mapping[str, Any],
        func_options: Mapping[str, Any],
        other_args_to_resolve: Mapping[str, Any] | None = None,
    ) -> None:
        """func_body: a remote function with func_options, or a plain one, which is given them."""
        remote: Any = func_body if hasattr(func_body, "remote") else made_remote(func_body, func_options)
        self._function: _RemoteFunction = remote
        super().__init__(func_args, func_kwargs, func_options, other_args_to_resolve)

    def _execute(self, args: Any, kwargs: Any, others: Any, inputs: Any) -> Any:
        return self._function.remote(*args, **kwargs)

    def _title(self) -> str:
        return str(self._function._function.__name__)
