"""Labels of nodes as users write them, and selectors of labels: `label_selector={"region": "in(us, eu)"}`.

Keys and values follow the rules of Kubernetes, as in Ray.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, assert_never

from ray_mono.common.scheduling.labels import (
    DOES_NOT_EXIST,
    EXISTS,
    IN,
    NODE_ID_LABEL,
    NOT_IN,
    LabelRequirement,
    LabelSelector,
)
from ray_mono.util.scheduling_strategies import DoesNotExist, Exists, Expressions, In, NotIn

_NAME = r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
_NAME_RULE = "at most 63 letters, digits, '-', '_' and '.', beginning and ending with a letter or a digit"
_PREFIX_LENGTH_MAX = 253
_EXPRESSION = re.compile(rf"(!?)(?:(?:in)?\(({_NAME}(?:, ?{_NAME})*)\)|({_NAME})?)")
_EXPRESSION_RULE = "'value', '!value', 'in(value, value)' or '!in(value, value)'"


def selector_of(given: Any, name: str) -> LabelSelector:
    """What a `label_selector` asks for. name: of the argument.

    Raises TypeError or ValueError that names what is wrong.
    """
    if not isinstance(given, Mapping):
        raise TypeError(f"{name} must be a dict from labels to expressions, got {given!r}")
    return tuple(_requirement(key, given[key], name) for key in sorted(given, key=str))


def of_expressions(given: Expressions) -> LabelSelector:
    """What one part of a NodeLabelSchedulingStrategy asks for."""
    selector = []
    for key in sorted(given):
        operator = given[key]
        match operator:
            case In(values=values):
                selector.append(LabelRequirement(key, IN, tuple(values)))
            case NotIn(values=values):
                selector.append(LabelRequirement(key, NOT_IN, tuple(values)))
            case Exists():
                selector.append(LabelRequirement(key, EXISTS))
            case DoesNotExist():
                selector.append(LabelRequirement(key, DOES_NOT_EXIST))
            case _:
                assert_never(operator)
    return tuple(selector)


def check_labels(labels: Any, name: str = "labels") -> None:
    """Of a node. Raises TypeError or ValueError that names what is wrong."""
    if not isinstance(labels, Mapping):
        raise TypeError(f"{name} must be a dict from strings to strings, got {labels!r}")
    for key, value in labels.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"{name} must be a dict from strings to strings, got {key!r}: {value!r}")
        _check_key(key, name)
        if value and not re.fullmatch(_NAME, value):
            raise ValueError(f"{name}: the value of {key!r} must be {_NAME_RULE}, got {value!r}")
        if key == NODE_ID_LABEL:
            raise ValueError(f"{name}: {NODE_ID_LABEL} is a node's own id, and every node has it")


def _requirement(key: Any, expression: Any, name: str) -> LabelRequirement:
    if not isinstance(key, str) or not isinstance(expression, str):
        raise TypeError(f"{name} must be a dict from labels to expressions, got {key!r}: {expression!r}")
    _check_key(key, name)
    read = re.fullmatch(_EXPRESSION, expression)
    if read is None or expression == "!":
        raise ValueError(
            f"{name}: {key!r} takes {_EXPRESSION_RULE}, where a value is {_NAME_RULE}; got {expression!r}"
        )
    negated, several, one = read.groups()
    values = tuple(re.split(", ?", several)) if several else (one or "",)
    return LabelRequirement(key, NOT_IN if negated else IN, values)


def _check_key(key: str, name: str) -> None:
    prefix, slash, last = key.rpartition("/")
    if not re.fullmatch(_NAME, last):
        raise ValueError(f"{name}: the label {key!r} must be {_NAME_RULE}, after an optional 'prefix/'")
    labels = prefix.split(".")
    if slash and (len(prefix) > _PREFIX_LENGTH_MAX or not all(re.fullmatch(_NAME, each) for each in labels)):
        raise ValueError(
            f"{name}: what is before '/' in {key!r} must be names with dots between them, of at most"
            f" {_PREFIX_LENGTH_MAX} characters in all; a name is {_NAME_RULE}"
        )
