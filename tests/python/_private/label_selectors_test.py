"""Labels and selectors as users write them. Each right and wrong one is judged as by Ray 2.60."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mono._private.label_selectors import check_labels, of_expressions, selector_of
from ray_mono.common.scheduling.labels import DOES_NOT_EXIST, EXISTS, IN, NOT_IN, LabelRequirement
from ray_mono.util.scheduling_strategies import DoesNotExist, Exists, In, NotIn


@pytest.mark.parametrize(
    ("expression", "operator", "values"),
    [
        ("us", IN, ("us",)),
        ("!us", NOT_IN, ("us",)),
        ("in(us)", IN, ("us",)),
        ("in(us, eu,asia)", IN, ("us", "eu", "asia")),
        ("!in(us, eu)", NOT_IN, ("us", "eu")),
        ("(us, eu)", IN, ("us", "eu")),
        ("a._-b", IN, ("a._-b",)),
        ("9" * 63, IN, ("9" * 63,)),
        ("", IN, ("",)),
    ],
)
def test_an_expression_says_which_values_fit(expression: str, operator: int, values: tuple[str, ...]) -> None:
    (requirement,) = selector_of({"region": expression}, "label_selector")
    assert requirement == ("region", operator, values)


@pytest.mark.parametrize(
    "expression", ["-us", "us_", "in()", "in(us,", "in(us, !eu)", "!!us", "a b", "9" * 64, "in(us,  eu)"]
)
def test_an_expression_that_does_not_read_is_refused(expression: str) -> None:
    with pytest.raises(ValueError, match="label_selector: 'region' takes 'value', '!value', 'in"):
        selector_of({"region": expression}, "label_selector")


@pytest.mark.parametrize("key", ["a", "ray.io/zone", "a.b-c/d_e", "1", "A" * 63])
def test_keys_are_those_of_kubernetes(key: str) -> None:
    assert selector_of({key: "x"}, "label_selector")[0].key == key
    check_labels({key: ""})


@pytest.mark.parametrize("key", ["", "-a", "a_", "a b", "/a", "a/", "a..b/c", "A" * 64, f"{'a.' * 130}a/b"])
def test_other_keys_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match="label"):
        selector_of({key: "x"}, "label_selector")
    with pytest.raises(ValueError, match="label"):
        check_labels({key: "x"})


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([], TypeError, "labels must be a dict"),
        ({"a": 1}, TypeError, "'a': 1"),
        ({1: "a"}, TypeError, "1: 'a'"),
        ({"a": "b c"}, ValueError, "the value of 'a' must be at most 63 letters"),
        ({"ray.io/node-id": "ab"}, ValueError, "ray.io/node-id is a node's own id"),
    ],
)
def test_what_cannot_be_labels_of_a_node_is_named(labels: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_labels(labels)


@pytest.mark.parametrize("given", [["a"], {"a": 1}, {"a": None}, {1: "a"}])
def test_what_cannot_be_a_selector_is_named(given: Any) -> None:
    with pytest.raises(TypeError, match="label_selector must be a dict from labels to expressions"):
        selector_of(given, "label_selector")


def test_the_operators_of_a_strategy_say_the_same() -> None:
    given = {"d": DoesNotExist(), "a": In("x", "y"), "c": Exists(), "b": NotIn("z")}
    assert of_expressions(given) == (
        LabelRequirement("a", IN, ("x", "y")),
        LabelRequirement("b", NOT_IN, ("z",)),
        LabelRequirement("c", EXISTS),
        LabelRequirement("d", DOES_NOT_EXIST),
    )
