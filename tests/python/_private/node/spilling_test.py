"""Where objects are spilled to, and by which settings: what Ray's names mean, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ray_mono._private.node import spilling
from ray_mono.object_manager.config import ObjectManagerConfig

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
    assert spilling.directories({}, "s3://b/c", SESSION) == ["s3://b/c", "/session"]
    two = config("smart_open", uri=["s3://a", "gs://b"])
    assert spilling.directories(two, None, SESSION) == ["s3://a", "gs://b", "/session"]
    assert spilling.directories({"automatic_object_spilling_enabled": False}, "/a", SESSION) == []


def test_a_tilde_is_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home-of-mine")
    assert spilling.directories({}, "~/a", SESSION) == ["/home-of-mine/a"]
    assert spilling.directories(config(directory_path=["~", "b~"]), None, Path("/")) == [
        "/home-of-mine",
        str(Path("b~").absolute()),
    ]
    with pytest.raises(ValueError, match="no user 'nobody-of-that-name' has a home directory here"):
        spilling.check({}, "~nobody-of-that-name/a")


def test_rays_numbers_have_the_object_managers_names() -> None:
    given = {"min_spilling_size": 1, "max_io_workers": 2, "gcs": {}, **config(directory_path="/a")}
    assert spilling.settings(given) == {"min_spilling_size_bytes": 1, "max_io_workers": 2}

    given = config("smart_open", uri="s3://a", buffer_size=8 << 20)
    assert spilling.settings(given) == {"external_part_bytes": 8 << 20}
    given = config("smart_open", uri="s3://a", buffer_size=1 << 20)  # as Ray's documents have it
    assert spilling.settings(given) == {"external_part_bytes": 5 << 20}


def test_objects_may_be_spilled_one_by_one_and_all_ahead_of_need() -> None:
    given = {"min_spilling_size": 0, "object_spilling_threshold": 0.0}
    spilling.check(given, None)
    settings = spilling.settings(given)
    assert settings == {"min_spilling_size_bytes": 0, "object_spilling_threshold": 0.0}
    ObjectManagerConfig(capacity_bytes=1000, **settings)


def test_each_node_has_a_directory_of_its_own_in_each_of_them() -> None:
    assert spilling.node_directories(["s3://a", "/a", "/b"], "ff") == [
        "/a/ray_spilled_objects_ff",
        "/b/ray_spilled_objects_ff",
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"object_spilling_config": "no json"}, "must be JSON as .*got 'no json'"),
        ({"object_spilling_config": {"type": "filesystem"}}, "must be JSON as"),
        ({"object_spilling_config": "{}"}, "must be JSON as"),
        (config("tape"), "no storage is of type 'tape'; accepted are filesystem, smart_open"),
        (config("smart_open", uri="/a"), "uri must be a URI as s3://bucket/path, got '/a'"),
        (config(directory_path="s3://a"), "directory_path must be the path of a directory"),
        (config("smart_open", uri="memory://a"), "that is the memory of one process"),
        (config("smart_open", uri="s3:///"), "must be a URI as s3://bucket/path, got 's3:///'"),
        (config("smart_open", uri=[]), r"uri must be one or a list of them, got \[\]"),
        (config("smart_open", uri="s3://a", buffer_size=0), "buffer_size must be a whole number"),
        (
            config("smart_open", uri="s3://a", override_transport_params={}),
            "no parameter 'override_transport_params'; accepted are buffer_size, uri. Credentials",
        ),
        (config(), "directory_path must be the path of a directory or a URI.*, got None"),
        (config(directory_path=[]), "directory_path must be one or a list of them"),
        (config(directory_path=["/a", 1]), "got 1"),
        (config(directory_path="/a", path="/b"), "no parameter 'path'"),
        ({"min_spilling_size": "much"}, "min_spilling_size must be a whole number from 0 on, got 'much'"),
        ({"min_spilling_size": -1}, "min_spilling_size must be a whole number from 0 on, got -1"),
        ({"max_fused_object_count": 0}, "max_fused_object_count must be a whole number from 1 on, got 0"),
        ({"verbose_spill_logs": -1}, "verbose_spill_logs must be a whole number from 0 on, got -1"),
        ({"object_spilling_threshold": 1.5}, "object_spilling_threshold must be at least 0 and at most 1"),
        ({"local_fs_capacity_threshold": 0}, "local_fs_capacity_threshold must be more than 0"),
        ({"automatic_object_spilling_enabled": 1}, "must be True or False, got 1"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spilling.check(given, None)


def test_a_directory_is_said_once() -> None:
    with pytest.raises(ValueError, match="give one of them"):
        spilling.check(config(directory_path="/a"), "/b")
    with pytest.raises(ValueError, match="directory must be the path of a directory or a URI.*, got ''"):
        spilling.check({}, "")
