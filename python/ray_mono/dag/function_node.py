"""FunctionNode: a call of a remote function that has not been made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray_mono.dag.dag_node import DAGNode
from ray_mono.remote_function import RemoteFunction


class FunctionNode(DAGNode):
    """Made by `f.bind(...)`."""

    def __init__(
        self,
        func_body: Callable[..., Any] | RemoteFunction[Any],
        func_args: Sequence[Any],
        func_kwargs: Mapping[str, Any],
        func_options: Mapping[str, Any],
        other_args_to_resolve: Mapping[str, Any] | None = None,
    ) -> None:
        """func_body: a remote function with func_options, or a plain one, which is given them."""
        self._function = (
            func_body
            if isinstance(func_body, RemoteFunction)
            else RemoteFunction[Any](func_body, dict(func_options))
        )
        super().__init__(func_args, func_kwargs, func_options, other_args_to_resolve)

    def _execute(self, args: Any, kwargs: Any, others: Any, inputs: Any) -> Any:
        return self._function.remote(*args, **kwargs)

    def _title(self) -> str:
        return str(self._function._function.__name__)
