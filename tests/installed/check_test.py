"""The oldest versions that pyproject.toml allows are known, so that they can be tried."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tests.installed.check import PYTHONS, oldest_allowed

ROOT = Path(__file__).absolute().parent.parent.parent

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_package_that_a_user_installs_has_a_lower_bound() -> None:
    pinned = {pin.partition("==")[0] for pin in oldest_allowed(PROJECT)}
    extras = PROJECT["optional-dependencies"]
    for requirement in (*PROJECT["dependencies"], *extras["redis"], *extras["examples"]):
        assert requirement.partition(">=")[0] in pinned


def test_pip_installs_it_for_those_pythons_only_on_which_it_is_tried() -> None:
    major, minor = PYTHONS[-1].split(".")
    assert PROJECT["requires-python"] == f">={PYTHONS[0]},<{major}.{int(minor) + 1}"


def test_the_oldest_allowed_versions_are_the_lower_bounds_themselves() -> None:
    project = {"dependencies": ["numpy>=1.26"], "optional-dependencies": {"test": ["pin==3", "types-x"]}}
    assert oldest_allowed(project) == ("numpy==1.26", "pin==3")


@pytest.mark.parametrize("requirement", ["numpy", "numpy<3", "numpy>=1,<3"])
def test_a_requirement_without_a_lower_bound_is_refused_by_name(requirement: str) -> None:
    with pytest.raises(ValueError, match="must say the oldest version that works"):
        oldest_allowed({"dependencies": [requirement], "optional-dependencies": {}})
