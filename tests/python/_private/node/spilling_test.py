"""Where objects are spilled to, and by which settings: what Ray's names mean, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ray_mono._private.node import spilling

SESSION = Path("/session")


def config(kind: Any = "filesystem", **params: Any) -> dict[str, Any]:
    return {"object_spilling_config": json.dumps({"type": kind, "params": params})}


def test_objects_go_to_the_session_unless_it_is_said_otherwise() -> None:
    assert spilling.directories({}, None, SESSION) == ["/session"]
    assert spilling.directories({}, "/a", SESSION) == ["/a"]
    assert spilling.directories(config(directory_path="/a"), None, SESSION) == ["/a"]
    assert spilling.directories(config(directory_path=["/a", "/b"], buffer_size=1), None, SESSION) == [
        "/a",
        "/b",
    ]
    assert spilling.directories({"automatic_object_spilling_enabled": False}, "/a", SESSION) == []


def test_rays_numbers_have_the_object_managers_names() -> None:
    given = {"min_spilling_size": 1, "max_io_workers": 2, "gcs": {}, **config(directory_path="/a")}
    assert spilling.settings(given) == {"min_spilling_size_bytes": 1, "max_io_workers": 2}


def test_each_node_has_a_directory_of_its_own_in_each_of_them() -> None:
    assert spilling.node_directories(["/a", "/b"], "ff") == [
        "/a/ray_spilled_objects_ff",
        "/b/ray_spilled_objects_ff",
    ]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"object_spilling_config": "no json"}, ValueError, "must be JSON as .*got 'no json'"),
        ({"object_spilling_config": {"type": "filesystem"}}, ValueError, "must be JSON as"),
        ({"object_spilling_config": "{}"}, ValueError, "must be JSON as"),
        (config("tape"), ValueError, "no storage is of type 'tape'; accepted is 'filesystem'"),
        (config("smart_open", uri="s3://a"), NotImplementedError, "'smart_open' is not part of ray_mono yet"),
        (config(), ValueError, "directory_path must be the path of a directory, got None"),
        (config(directory_path=[]), ValueError, "a directory or a list of them"),
        (config(directory_path=["/a", 1]), ValueError, "got 1"),
        (config(directory_path="/a", path="/b"), ValueError, "no parameter 'path'"),
        ({"min_spilling_size": "much"}, ValueError, "min_spilling_size must be a number, got 'much'"),
        ({"automatic_object_spilling_enabled": 1}, ValueError, "must be True or False, got 1"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(
    given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        spilling.check(given, None)


def test_a_directory_is_said_once() -> None:
    with pytest.raises(ValueError, match="give one of them"):
        spilling.check(config(directory_path="/a"), "/b")
    with pytest.raises(ValueError, match="object_spilling_directory must be the path of a directory, got ''"):
        spilling.check({}, "")
