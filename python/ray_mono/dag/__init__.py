"""Graphs of tasks and actor calls: built with `bind`, run as often as one likes with `execute`.

    with InputNode() as number:
        graph = add.bind(double.bind(number), 1)
    ray_mono.get(graph.execute(20))

A node is a call that has not been made: a function, an actor class or an actor's method with its arguments,
among which may be other nodes, wherever they are. `execute` makes the calls from the leaves to the root, each
once, and hands on references, so that whatever can run at once does.

Ray's compiled graphs (`experimental_compile`, DAGContext, collectives between GPUs) are not part of ray_mono:
a call here costs little enough to be made each time.
"""

from typing import TYPE_CHECKING, Any

from ray_mono.dag import dag_node

if TYPE_CHECKING:
    from ray_mono.dag.class_node import IS_CLASS_METHOD_OUTPUT_KEY as IS_CLASS_METHOD_OUTPUT_KEY
    from ray_mono.dag.class_node import PARENT_CLASS_NODE_KEY as PARENT_CLASS_NODE_KEY
    from ray_mono.dag.class_node import PREV_CLASS_METHOD_CALL_KEY as PREV_CLASS_METHOD_CALL_KEY
    from ray_mono.dag.class_node import ClassMethodNode as ClassMethodNode
    from ray_mono.dag.class_node import ClassNode as ClassNode
    from ray_mono.dag.dag_node import DAGNode as DAGNode
    from ray_mono.dag.function_node import FunctionNode as FunctionNode
    from ray_mono.dag.input_node import DAGInputData as DAGInputData
    from ray_mono.dag.input_node import InputAttributeNode as InputAttributeNode
    from ray_mono.dag.input_node import InputNode as InputNode
    from ray_mono.dag.output_node import MultiOutputNode as MultiOutputNode
    from ray_mono.dag.plotting import plot as plot

# name -> the module of this package that has it
_EXPORTS = {
    "ClassMethodNode": "class_node",
    "ClassNode": "class_node",
    "DAGInputData": "input_node",
    "DAGNode": "dag_node",
    "FunctionNode": "function_node",
    "IS_CLASS_METHOD_OUTPUT_KEY": "class_node",
    "InputAttributeNode": "input_node",
    "InputNode": "input_node",
    "MultiOutputNode": "output_node",
    "PARENT_CLASS_NODE_KEY": "class_node",
    "PREV_CLASS_METHOD_CALL_KEY": "class_node",
    "plot": "plotting",
}
# Ray's names that belong to compiled graphs.
_COMPILED = {
    "BIND_INDEX_KEY",
    "COLLECTIVE_OPERATION_KEY",
    "CollectiveOutputNode",
    "DAGContext",
    "DAGNODE_TYPE_KEY",
    "DAGOperationFuture",
    "GPUFuture",
}

__all__ = list(_EXPORTS)


def _remote(*targets: Any, **options: Any) -> Any:
    """`remote`, loaded when a node is first made of a plain function or class."""
    from ray_mono._private.remote_decorator import remote

    return remote(*targets, **options)


dag_node.hand_in_remote(_remote)


def __getattr__(name: str) -> object:
    """Loads an exported name on its first use."""
    place = _EXPORTS.get(name)
    if place is None:
        why = ": compiled graphs are not part of ray_mono" if name in _COMPILED else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{why}")
    import importlib

    value: object = getattr(importlib.import_module(f"{__name__}.{place}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
