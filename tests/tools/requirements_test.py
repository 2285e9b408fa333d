"""pyproject.toml, requirements.in and requirements.lock name the same packages, and the installed ones are
those locked."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).absolute().parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
REQUESTED = {
    line.strip() for line in (ROOT / "requirements.in").read_text().splitlines() if line.strip()[:1].isalpha()
}
LOCKED = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=]", requirement)[0] for requirement in requirements}


def test_what_is_requested_is_locked_and_installed() -> None:
    assert set(LOCKED) >= REQUESTED
    assert {name: version(name) for name in LOCKED} == LOCKED


def test_the_package_asks_for_nothing_that_is_not_tested_with_it() -> None:
    project = PROJECT["project"]
    asked = names(project["dependencies"]).union(
        *(names(extra) for extra in project["optional-dependencies"].values())
    )
    assert asked <= REQUESTED


def test_a_wheel_is_generated_with_the_locked_generator() -> None:
    pin = f"grpcio-tools=={LOCKED['grpcio-tools']}"
    assert pin in PROJECT["build-system"]["requires"]
    assert pin in PROJECT["project"]["optional-dependencies"]["test"]


def test_the_lock_names_no_index() -> None:
    assert "://" not in (ROOT / "requirements.lock").read_text()
