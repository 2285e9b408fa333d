"""The nodes inside a value: found, and replaced by what stands for them.

Lists, tuples, dicts and sets are walked through. Any other object is searched by pickling it, with nodes,
references and handles left out: whatever could travel as an argument can be searched, and large buffers are
not copied. What does not pickle has no nodes; the call that it is an argument of will say so.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from ray_mono._private.remote.actor_metadata import AnyActorHandle
from ray_mono.cloudpickle import CloudPickler
from ray_mono.core_worker.object_ref import ObjectRef

# What a node is, the caller says: nodes are defined above this module.
Node = TypeVar("Node")

_TRAVELS_COUNTED = (ObjectRef, AnyActorHandle)
_SEQUENCES = (list, tuple, set, frozenset)
_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def find(value: Any, node_type: type[Node]) -> list[Node]:
    """The nodes in `value`, each once, in the order of their appearance."""
    found: dict[int, Node] = {}
    _find(value, node_type, found)
    return list(found.values())


def _find(value: Any, node_type: type[Node], found: dict[int, Node]) -> None:
    kind = type(value)
    if isinstance(value, node_type):
        found[id(value)] = value
    elif kind in _SEQUENCES:
        for item in value:
            _find(item, node_type, found)
    elif kind is dict:
        for key, item in value.items():
            _find(key, node_type, found)
            _find(item, node_type, found)
    elif not _is_leaf(value):
        found.update((id(node), node) for node in _Search(value, node_type).nodes)


def replace(value: Any, node_type: type[Node], substitute: Callable[[Node], Any]) -> Any:
    """`value` with substitute(node) in the place of each node; the value itself where there is none."""
    kind = type(value)
    if isinstance(value, node_type):
        return substitute(value)
    if kind in _SEQUENCES:
        return kind(replace(item, node_type, substitute) for item in value)
    if kind is dict:
        return {
            replace(key, node_type, substitute): replace(item, node_type, substitute)
            for key, item in value.items()
        }
    if _is_leaf(value):
        return value
    search = _Search(value, node_type)
    return search.rebuild(substitute) if search.nodes else value


def _is_leaf(value: Any) -> bool:
    return type(value) in _PLAIN or isinstance(value, _TRAVELS_COUNTED)


class _Search(Generic[Node]):
    """An object of any type, pickled without its nodes."""

    def __init__(self, value: Any, node_type: type[Node]) -> None:
        self._stream = io.BytesIO()
        self._buffers: list[pickle.PickleBuffer] = []
        pickler = _Searcher(node_type, self._stream, protocol=5, buffer_callback=self._buffers.append)
        try:
            pickler.dump(value)
        except Exception:  # user code: any error
            pickler.left_out.clear()
        self._left_out = pickler.left_out

    @property
    def nodes(self) -> list[Node]:
        return [value for value in self._left_out if not isinstance(value, _TRAVELS_COUNTED)]

    def rebuild(self, substitute: Callable[[Node], Any]) -> Any:
        """The object, with what stands for its nodes."""
        self._stream.seek(0)
        return _Rebuilder(self._stream, self._buffers, self._left_out, substitute).load()


class _Searcher(CloudPickler):
    """Pickles an object without its nodes, references and handles."""

    def __init__(self, node_type: type, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.left_out: list[Any] = []
        self._kinds = (node_type, *_TRAVELS_COUNTED)

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, self._kinds):
            return None
        self.left_out.append(value)
        return len(self.left_out) - 1


class _Rebuilder(pickle.Unpickler):
    def __init__(
        self,
        stream: io.BytesIO,
        buffers: Iterable[pickle.PickleBuffer],
        left_out: list[Any],
        substitute: Callable[[Any], Any],
    ) -> None:
        super().__init__(stream, buffers=buffers)
        self._left_out = left_out
        self._substitute = substitute

    def persistent_load(self, index: int) -> Any:
        value = self._left_out[index]
        return value if isinstance(value, _TRAVELS_COUNTED) else self._substitute(value)
