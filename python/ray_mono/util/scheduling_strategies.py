"""Where tasks and actors may run: values for the option `scheduling_strategy`, beside "DEFAULT" and
"SPREAD"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray_mono.common.ids import NodeID

__all__ = [
    "DoesNotExist",
    "Exists",
    "In",
    "NodeAffinitySchedulingStrategy",
    "NodeLabelSchedulingStrategy",
    "NotIn",
    "PlacementGroupSchedulingStrategy",
]


class PlacementGroupSchedulingStrategy:
    """In a bundle of a placement group."""

    def __init__(
        self,
        placement_group: Any,
        placement_group_bundle_index: int = -1,
        placement_group_capture_child_tasks: bool | None = None,
    ) -> None:
        """placement_group: None for none, also where the caller captures its children.

        placement_group_bundle_index: -1 for any. placement_group_capture_child_tasks: whether what it submits
        runs there too, unless that says otherwise; None: if it does so for its caller.
        """
        self.placement_group = placement_group
        self.placement_group_bundle_index = placement_group_bundle_index
        self.placement_group_capture_child_tasks = placement_group_capture_child_tasks


class NodeAffinitySchedulingStrategy:
    """On one node."""

    def __init__(
        self,
        node_id: str,
        soft: bool,
        _spill_on_unavailable: bool = False,
        _fail_on_unavailable: bool = False,
    ) -> None:
        """node_id: in hex, or a NodeID. soft: True runs it elsewhere if the node is dead or could never hold
        it; False makes that an error. _spill_on_unavailable (with soft=True): also if the node has it not
        free now. _fail_on_unavailable (with soft=False): that is an error, too.

        Raises TypeError for an id that is neither, and ValueError for what is no node's id, and for a private
        argument with the other `soft`.
        """
        if not isinstance(node_id, (str, NodeID)):
            raise TypeError(
                f"node_id must be a node's id in hex, as ray_mono.nodes() tells it, got {node_id!r} of type"
                f" {type(node_id).__name__}"
            )
        text = node_id if isinstance(node_id, str) else node_id.hex()
        try:
            is_nil = NodeID.from_hex(text).is_nil()
        except ValueError:
            is_nil = True
        if is_nil:
            raise ValueError(
                f"node_id must be a node's id in hex, as ray_mono.nodes() tells it, got {node_id!r}"
            )
        if _spill_on_unavailable and not soft:
            raise ValueError("_spill_on_unavailable=True goes with soft=True only")
        if _fail_on_unavailable and soft:
            raise ValueError("_fail_on_unavailable=True goes with soft=False only")
        self.node_id = text
        self.soft = soft
        self._spill_on_unavailable = _spill_on_unavailable
        self._fail_on_unavailable = _fail_on_unavailable


class _Values:
    """An operator that names values of a label."""

    def __init__(self, *values: str) -> None:
        """Raises ValueError for no values, or other than strings."""
        name = type(self).__name__
        if not values or not all(isinstance(value, str) for value in values):
            raise ValueError(f"{name} takes one string or more, as {name}('a', 'b'), got {values!r}")
        self.values = list(values)


class In(_Values):
    """The label has one of these values."""


class NotIn(_Values):
    """The label has none of these values, or is absent."""


class Exists:
    """The label is there, whatever its value."""


class DoesNotExist:
    """The label is absent."""


_OPERATORS = (In, NotIn, Exists, DoesNotExist)
Expressions = Mapping[str, "In | NotIn | Exists | DoesNotExist"]


class NodeLabelSchedulingStrategy:
    """On a node whose labels fit, e.g.

    `NodeLabelSchedulingStrategy({"region": In("us"), "gpu_type": Exists()})`.
    """

    def __init__(self, hard: Expressions | None, *, soft: Expressions | None = None) -> None:
        """hard: must fit. soft: is preferred.

        Raises ValueError for neither, and for what is no dict from labels to operators.
        """
        for name, expressions in (("hard", hard), ("soft", soft)):
            if expressions is None:
                continue
            if not isinstance(expressions, Mapping) or not all(
                isinstance(label, str) and isinstance(operator, _OPERATORS)
                for label, operator in expressions.items()
            ):
                raise ValueError(
                    f"{name} must be a dict from labels to In(...), NotIn(...), Exists() or DoesNotExist(),"
                    f" got {expressions!r}"
                )
        if not hard and not soft:
            raise ValueError("hard and soft may not both be empty")
        self.hard = dict(hard or {})
        self.soft = dict(soft or {})
