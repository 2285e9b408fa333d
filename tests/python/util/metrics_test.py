"""Counter, Gauge and Histogram: what they refuse, and what they record."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from ray_mono.util import metrics
from ray_mono.util.metrics import Counter, Gauge, Histogram


def test_a_counter_grows_by_tags() -> None:
    counter = Counter("requests", description="d", tag_keys=("route", "code"))
    assert counter.set_default_tags({"code": "200"}) is counter
    counter.inc(tags={"route": "/"})
    counter.inc(2, tags={"route": "/"})
    counter.inc(5.5, tags={"route": "/", "code": "500"})
    assert counter.values() == {
        (("code", "200"), ("route", "/")): 3.0,
        (("code", "500"), ("route", "/")): 5.5,
    }
    for bad in (0, -1):
        with pytest.raises(ValueError, match=f"above 0, got {bad}"):
            counter.inc(bad, tags={"route": "/"})
    with pytest.raises(TypeError, match="'1'"):
        counter.inc("1", tags={"route": "/"})  # type: ignore[arg-type]


def test_a_gauge_keeps_the_latest_value_and_ignores_none() -> None:
    gauge = Gauge("load")
    gauge.set(1)
    gauge.set(0.5)
    gauge.set(None)
    assert gauge.values() == {(): 0.5}
    with pytest.raises(TypeError):
        gauge.set("high")  # type: ignore[arg-type]


def test_a_histogram_counts_values_between_its_boundaries() -> None:
    histogram = Histogram("latency", boundaries=[1.0, 2.0], tag_keys=("a",))
    for value in (0.5, 1.0, 1.5, 9):
        histogram.observe(value, tags={"a": "b"})
    assert histogram.values() == {(("a", "b"),): [2, 1, 1]}
    assert histogram.info["boundaries"] == [1.0, 2.0]
    for boundaries in (None, [], [0.0], [1.0, -2.0]):
        with pytest.raises(ValueError, match="boundaries"):
            Histogram("latency", boundaries=boundaries)


def test_tags_have_to_be_complete_known_as_defaults_and_texts() -> None:
    counter = Counter("n", tag_keys=("a", "b"))
    with pytest.raises(ValueError, match="tag.s. b"):
        counter.inc(tags={"a": "1"})
    with pytest.raises(TypeError, match="got 1, a int, for 'a'"):
        counter.inc(tags={"a": 1, "b": "2"})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="'c'"):
        counter.set_default_tags({"c": "1"})
    with pytest.raises(TypeError, match="got 1"):
        counter.set_default_tags({"a": 1})  # type: ignore[dict-item]
    assert counter.values() == {}


@pytest.mark.parametrize("kind", [Counter, Gauge, Histogram])
def test_names_and_tag_keys_are_checked(kind: Any) -> None:
    more = {"boundaries": [1.0]} if kind is Histogram else {}
    with pytest.raises(ValueError, match="empty"):
        kind("", **more)
    for keys in ("a", ["a"], (1,)):
        with pytest.raises(TypeError, match="tag_keys takes a tuple of str"):
            kind("n", tag_keys=keys, **more)
    with pytest.warns(FutureWarning, match="a:b"):
        kind("a:b", **more)
    with pytest.warns(UserWarning, match="will not be recorded"):
        discarded = kind("1-bad", **more)
    record = getattr(discarded, {Counter: "inc", Gauge: "set", Histogram: "observe"}[kind])
    record(1.0)
    assert discarded.values() == {}


def test_info_tells_what_was_given_and_a_pickled_metric_is_a_new_one() -> None:
    counter = Counter("n", "about", ("a",)).set_default_tags({"a": "1"})
    assert counter.info == {
        "name": "n",
        "description": "about",
        "tag_keys": ("a",),
        "default_tags": {"a": "1"},
    }
    copy = pickle.loads(pickle.dumps(counter))
    assert (
        isinstance(copy, Counter)
        and copy.info == {**counter.info, "default_tags": {}}
        and copy.values() == {}
    )
    histogram = pickle.loads(pickle.dumps(Histogram("h", boundaries=[1.0], tag_keys=("a",))))
    assert histogram.info["boundaries"] == [1.0] and histogram.info["tag_keys"] == ("a",)
    assert set(metrics.__all__) == {"Counter", "Gauge", "Histogram", "Metric"}
