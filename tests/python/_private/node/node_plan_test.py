"""The environment of a node's processes: they find the package, and nothing stands before the standard
library that need not."""

from __future__ import annotations

import os
import site
import sys
from pathlib import Path

import pytest

import ray_mono
from ray_mono._private import ray_children
from ray_mono._private.node.node_plan import service_environment

ROOT = str(Path(os.path.abspath(ray_mono.__file__)).parent.parent)


def python_path() -> list[str]:
    return [path for path in service_environment("secret", None)["PYTHONPATH"].split(os.pathsep) if path]


def test_a_package_outside_of_site_packages_is_found_before_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/one", "", ROOT, "/two"]))
    assert python_path() == [ROOT, "/one", "/two"]


def test_a_cluster_that_a_program_under_compat_starts_serves_others_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/one")
    monkeypatch.setattr(sys, "path", list(sys.path))
    ray_children.put_on_python_path()
    assert os.environ["PYTHONPATH"].split(os.pathsep) == [ray_children.FOLDER, "/one"]
    assert python_path() == [ROOT, "/one"]


def test_site_packages_stay_behind_the_standard_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package may have the name of a standard module, as backports do."""
    monkeypatch.setattr(site, "getsitepackages", lambda: [ROOT])
    monkeypatch.setenv("PYTHONPATH", "/one")
    assert python_path() == ["/one"]
    monkeypatch.delenv("PYTHONPATH")
    assert python_path() == []
