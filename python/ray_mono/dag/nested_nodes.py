"""The nodes inside a value: found, and replaced by what stands for them.

Lists, tuples, dicts and sets are walked through. Any other object is searched by pickling it, with nodes, references and
handles left out: whatever could travel as an argument can be searched, and large buffers are not copied. What does not pickle
has no nodes; the call that it is an argument of will say so.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ray_mono.actor import ActorHandle
from ray_mono.common.code_pickler import CodePickler
from ray_mono.core_worker.object_ref import ObjectRef

if TYPE_CHECKING:
    from ray_mono.dag.dag_node import DAGNode

_LEAVES = (type(None), bool, int, float, complex, str, bytes, ObjectRef, ActorHandle)
_SEQUENCES = (list, tuple, set, frozenset)


def find(value: Any) -> list[DAGNode]:
    """The nodes in `value`, each once, in the order of their appearance."""
    found: dict[int, DAGNode] = {}
    _find(value, found)
    return list(found.values())


def _find(value: Any, found: dict[int, DAGNode]) -> None:
    from ray_mono.dag.dag_node import DAGNode

    kind = type(value)
    if isinstance(value, DAGNode):
        found[id(value)] = value
    elif kind in _SEQUENCES:
        for item in value:
            _find(item, found)
    elif kind is dict:
        for key, item in value.items():
            _find(key, found)
            _find(item, found)
    elif kind not in _LEAVES:
        found.update((id(node), node) for node in _Search(value).nodes)


def replace(value: Any, substitute: Callable[[DAGNode], Any]) -> Any:
    """`value` with substitute(node) in the place of each node; the value itself where there is none."""
    from ray_mono.dag.dag_node import DAGNode

    kind = type(value)
    if isinstance(value, DAGNode):
        return substitute(value)
    if kind in _SEQUENCES:
        return kind(replace(item, substitute) for item in value)
    if kind is dict:
        return {replace(key, substitute): replace(item, substitute) for key, item in value.items()}
    if kind in _LEAVES:
        return value
    search = _Search(value)
    return search.rebuild(substitute) if search.nodes else value


class _Search:
    """An object of any type, pickled without its nodes."""

    def __init__(self, value: Any) -> None:
        self._stream = io.BytesIO()
        self._buffers: list[pickle.PickleBuffer] = []
        pickler = _Searcher(self._stream, protocol=5, buffer_callback=self._buffers.append)
        try:
            pickler.dump(value)
        except Exception:  # user code: any error
            pickler.left_out.clear()
        self._left_out = pickler.left_out

    @property
    def nodes(self) -> list[DAGNode]:
        return [value for value in self._left_out if not isinstance(value, (ObjectRef, ActorHandle))]

    def rebuild(self, substitute: Callable[[DAGNode], Any]) -> Any:
        """The object, with what stands for its nodes."""
        self._stream.seek(0)
        return _Rebuilder(self._stream, self._buffers, self._left_out, substitute).load()


class _Searcher(CodePickler):
    """Pickles an object without its nodes, references and handles."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.left_out: list[Any] = []

    def persistent_id(self, value: Any) -> int | None:
        from ray_mono.dag.dag_node import DAGNode

        if not isinstance(value, (DAGNode, ObjectRef, ActorHandle)):
            return None
        self.left_out.append(value)
        return len(self.left_out) - 1


class _Rebuilder(pickle.Unpickler):
    def __init__(
        self,
        stream: io.BytesIO,
        buffers: Iterable[pickle.PickleBuffer],
        left_out: list[Any],
        substitute: Callable[[DAGNode], Any],
    ) -> None:
        super().__init__(stream, buffers=buffers)
        self._left_out = left_out
        self._substitute = substitute

    def persistent_load(self, index: int) -> Any:
        value = self._left_out[index]
        return value if isinstance(value, (ObjectRef, ActorHandle)) else self._substitute(value)
