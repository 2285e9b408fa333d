"""MultiOutputNode: several nodes as the end of one graph."""

from __future__ import annotations

from typing import Any

from ray_mono.dag.dag_node import DAGNode


class MultiOutputNode(DAGNode):
    """Its result is the list of its nodes' results."""

    def __init__(
        self, args: list[Any] | tuple[Any, ...], other_args_to_resolve: dict[str, Any] | None = None
    ) -> None:
        """args: the nodes. Raises ValueError for anything but a list or tuple."""
        if not isinstance(args, (list, tuple)):
            raise ValueError(f"MultiOutputNode takes a list or tuple of nodes, got {args!r}")
        super().__init__(args, {}, {}, other_args_to_resolve)

    def _execute(self, args: Any, kwargs: Any, others: Any, inputs: Any) -> Any:
        return list(args)

    def _title(self) -> str:
        return "MultiOutputNode"
