"""A graph as a picture, drawn by Graphviz."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray_mono.dag.dag_node import DAGNode

_DOT_SUFFIXES = (".dot", ".gv")


def plot(dag: DAGNode, to_file: str | None = None) -> Any:
    """Draws the graph that ends at `dag`.

    Args:
        to_file: where to; its suffix says in which format (.png, .svg, …). .dot and .gv are Graphviz's
            language itself, for which nothing else need be installed. None: a PNG, returned as bytes.

    Raises ImportError where the package pydot is missing, and what pydot raises where Graphviz is.
    """
    suffix = Path(to_file).suffix if to_file else ".png"
    if to_file and suffix in _DOT_SUFFIXES:
        Path(to_file).write_text(_dot(dag))
        return None
    try:
        import pydot
    except ImportError:
        raise ImportError(
            "plot() needs the package pydot: pip install pydot; a .dot file needs nothing"
        ) from None
    (graph,) = pydot.graph_from_dot_data(_dot(dag))
    if to_file is None:
        return graph.create(format="png")
    graph.write(to_file, format=suffix.removeprefix(".") or "png")
    return None


def _dot(dag: DAGNode) -> str:
    nodes = dag._in_order()
    names = {node.get_stable_uuid(): f"n{number}" for number, node in enumerate(nodes)}
    lines = ["digraph {", "  rankdir=LR"]
    for node in nodes:
        title = node._title().replace("\\", "\\\\").replace('"', '\\"')
        lines.append(f'  {names[node.get_stable_uuid()]} [label="{title}"]')
        for before in node._upstream:
            lines.append(f"  {names[before.get_stable_uuid()]} -> {names[node.get_stable_uuid()]}")
    return "\n".join([*lines, "}", ""])
