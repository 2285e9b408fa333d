"""Labels of nodes, and what work asks of them: pure.

A selector is a tuple of requirements, and a node has to meet each of them. Where work has several selectors,
each stands for the case that none before it can be met now (`label_selector` with its `fallback_strategy`, or
the hard and soft parts of a NodeLabelSchedulingStrategy).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.protobuf import common_pb2

NODE_ID_LABEL = "ray.io/node-id"
"""Each node has it: its id in hex."""
IN = common_pb2.LabelRequirement.IN
NOT_IN = common_pb2.LabelRequirement.NOT_IN
EXISTS = common_pb2.LabelRequirement.EXISTS
DOES_NOT_EXIST = common_pb2.LabelRequirement.DOES_NOT_EXIST

Labels = Mapping[str, str]

VALUES_TOLD_MAX = 5
"""Of one label."""


class LabelRequirement(NamedTuple):
    """Of one label. values: of IN and NOT_IN."""

    key: str
    operator: common_pb2.LabelRequirement.Operator
    values: tuple[str, ...] = ()

    def is_met_by(self, labels: Labels) -> bool:
        """A label that is absent has none of the values of NOT_IN (as in Ray)."""
        value = labels.get(self.key)
        if self.operator == IN:
            return value in self.values
        if self.operator == NOT_IN:
            return value not in self.values
        return (value is not None) == (self.operator == EXISTS)

    def __str__(self) -> str:
        """For people."""
        values = ", ".join(self.values)
        if self.operator in (IN, NOT_IN):
            is_in = self.operator == IN
            if len(self.values) == 1:
                return f"{self.key} {'=' if is_in else '!='} {values}"
            return f"{self.key} {'in' if is_in else 'not in'} ({values})"
        return f"{self.key} {'is there' if self.operator == EXISTS else 'is absent'}"


LabelSelector = tuple[LabelRequirement, ...]


def selects(selector: LabelSelector, labels: Labels) -> bool:
    for requirement in selector:
        if not requirement.is_met_by(labels):
            return False
    return True


def any_selects(selectors: Sequence[LabelSelector], labels: Labels) -> bool:
    """Whether one of them does, or there is none to ask for anything."""
    return not selectors or any(selects(selector, labels) for selector in selectors)


def told(selectors: Sequence[LabelSelector]) -> str:
    """For people: "region = us and gpu is there, or else market-type != spot"."""
    return ", or else ".join(
        " and ".join(str(requirement) for requirement in selector) or "any labels" for selector in selectors
    )


def needed(resources: ResourceSet, selectors: Sequence[LabelSelector]) -> str:
    """For people, what a node has to have: "{CPU: 1} and zone = mars"."""
    parts = [f"{resources}"] if resources or not selectors else []
    return " and ".join([*parts, told(selectors)] if selectors else parts)


def told_values(selectors: Sequence[LabelSelector], nodes: Sequence[Labels]) -> str:
    """For people, what nodes have of the labels asked for: "region is us (2), eu (1); no node has gpu"."""
    have = []
    for key in sorted({requirement.key for selector in selectors for requirement in selector}):
        values = Counter(labels.get(key) for labels in nodes)
        named = [f"{value} ({count})" for value, count in values.most_common() if value is not None]
        shown = ", ".join(named[:VALUES_TOLD_MAX]) + (", …" if len(named) > VALUES_TOLD_MAX else "")
        have.append(f"{key} is {shown}" if shown else f"no node has {key}")
    return "; ".join(have)


def selector_from_proto(message: common_pb2.LabelSelector) -> LabelSelector:
    return tuple(
        LabelRequirement(each.key, each.operator, tuple(each.values)) for each in message.requirements
    )


def selector_to_proto(selector: LabelSelector) -> common_pb2.LabelSelector:
    return common_pb2.LabelSelector(
        requirements=[
            common_pb2.LabelRequirement(key=each.key, operator=each.operator, values=each.values)
            for each in selector
        ]
    )
