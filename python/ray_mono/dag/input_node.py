"""InputNode: it stands for what a graph is executed with.

    with InputNode() as given:
        graph = f.bind(given)                  graph.execute(1)             given is 1
        graph = f.bind(given[0], given.key)    graph.execute(1, key=2)      two of several arguments
        graph = f.bind(given["key"])           graph.execute({"key": 1})    a part of the only argument

A graph has one at most.
"""

from __future__ import annotations

from typing import Any

from ray_mono.dag.dag_node import DAGNode
from ray_mono.dag.input_data import DAGInputData as DAGInputData


class InputNode(DAGNode):
    """The input of a graph; one for each graph, made in a `with`."""

    def __init__(
        self, *args: Any, input_type: type | dict[int | str, type] | None = None, **kwargs: Any
    ) -> None:
        """
        Args:
            input_type: of the input, or of its parts by position or name; for readers of the graph, not
                checked.

        Raises ValueError for anything else.
        """
        if args or kwargs:
            raise ValueError(
                f"InputNode takes no arguments besides input_type, got {[*args, *kwargs]!r}: inputs are"
                " given to execute()"
            )
        self._is_in_context = False
        self._input_type = input_type
        super().__init__((), {}, {})

    def __enter__(self) -> InputNode:
        self._is_in_context = True
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __getattr__(self, key: str) -> InputAttributeNode:
        """The attribute, or the keyword argument, of this name."""
        if key.startswith("__"):
            raise AttributeError(key)
        return InputAttributeNode(self, key, "__getattr__", self._part_type(key))

    def __getitem__(self, key: int | str) -> InputAttributeNode:
        """The item, or the argument, of this position or name."""
        if isinstance(key, bool) or not isinstance(key, (int, str)):
            raise AssertionError(f"an input is indexed with a whole number or a string, got {key!r}")
        return InputAttributeNode(self, key, "__getitem__", self._part_type(key))

    def _part_type(self, key: int | str) -> str | None:
        if isinstance(self._input_type, dict) and key in self._input_type:
            return self._input_type[key].__name__
        return None

    def get_result_type(self) -> str | None:
        """Name of the type given as input_type."""
        return self._input_type.__name__ if isinstance(self._input_type, type) else None

    def _execute(self, args: Any, kwargs: Any, others: Any, inputs: Any) -> Any:
        return inputs

    def _title(self) -> str:
        return "InputNode"


class InputAttributeNode(DAGNode):
    """A part of the input: `node.name`, `node[0]` or `node["name"]`."""

    def __init__(
        self, dag_input_node: InputNode, key: int | str, accessor_method: str, input_type: str | None = None
    ) -> None:
        self._key = key
        self._accessor_method = accessor_method
        self._input_type = input_type
        super().__init__((), {}, {}, {"dag_input_node": dag_input_node})

    @property
    def key(self) -> int | str:
        return self._key

    def get_result_type(self) -> str | None:
        """Name of the type that input_type gave for this part."""
        return self._input_type

    def _execute(self, args: Any, kwargs: Any, others: Any, inputs: Any) -> Any:
        value = others["dag_input_node"]
        if isinstance(value, DAGInputData) or self._accessor_method == "__getitem__":
            return value[self._key]
        return getattr(value, str(self._key))

    def _title(self) -> str:
        return f"InputNode[{self._key!r}]"
