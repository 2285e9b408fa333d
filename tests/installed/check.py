"""The package as its users install it, in fresh virtualenvs outside of the tree, beside other versions than
the lock's.

    ./bazelw run //tests/installed:check [-- SET ...]        (or: python tests/installed/check.py [SET ...])

    newest         `pip install .` as in README.md: the newest version of everything that pip finds
    oldest         the wheel beside the oldest version of everything that pyproject.toml allows
    newest-3.12    as newest, on that Python: skipped where the machine has none
    newest-3.13

Each runs smoke.py, README.md's commands and the examples. What fails is named with the versions that it
failed beside. It needs the package index that pip is configured for.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SMOKE = Path(__file__).resolve().parent / "smoke.py"
COMMAND_TIMEOUT_S = 240.0
PYTHONS = ("3.11", "3.12", "3.13")
"""Those that pyproject.toml lets pip install it for: the first is the one that the tests run on."""
# Beside what the package itself asks for: its examples' packages, and the other arrays that users store.
EXTRAS = "[examples]"
BESIDES = ("pyarrow",)


class CheckFailed(Exception):
    """A command of a set failed; the message has its output."""


@dataclass(frozen=True)
class Versions:
    """One set of versions to install beside the package."""

    name: str
    python: str
    constraints: tuple[str, ...] = ()
    from_tree: bool = False
    """Whether `pip install .` in a clean copy is what installs it, and not the wheel."""


def oldest_allowed(project: dict[str, object]) -> tuple[str, ...]:
    """pip constraints that pin each requirement of pyproject.toml's `project` to its lower bound.

    Raises ValueError for a requirement that has none.
    """
    requirements: list[str] = list(project["dependencies"])  # type: ignore[call-overload]
    for extra in project["optional-dependencies"].values():  # type: ignore[attr-defined]
        requirements += extra
    pins = {}
    for requirement in requirements:
        match = re.fullmatch(r"([\w.-]+)(?:>=|==)([\w.]+)", requirement)
        if match:
            pins[match[1]] = f"{match[1]}=={match[2]}"
        elif not requirement.startswith("types-"):
            raise ValueError(f"{requirement!r} must say the oldest version that works: NAME>=VERSION")
    return tuple(sorted(pins.values()))


def find_python(version: str) -> str | None:
    """An interpreter of that version that can make virtualenvs: on the PATH, or pyenv's."""
    candidates = [shutil.which(f"python{version}")]
    if pyenv := shutil.which("pyenv"):
        listed = subprocess.run([pyenv, "prefix", version], capture_output=True, text=True)
        candidates += [f"{listed.stdout.strip()}/bin/python"] if listed.returncode == 0 else []
    for candidate in candidates:
        asked = (
            "import ensurepip, sys, venv;"
            f" sys.exit(sys.version_info[:2] != {tuple(map(int, version.split('.')))})"
        )
        if candidate and subprocess.run([candidate, "-c", asked], capture_output=True).returncode == 0:
            return candidate
    return None


def copy_of_tree(target: Path) -> Path:
    """What git would hand out: nothing that an earlier build left in the working copy."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split(
        "\0"
    ):
        if name and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def run(command: Sequence[str | Path], cwd: Path) -> str:
    """Its output. Raises CheckFailed."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "RAY_", "RUNFILES", "BAZEL", "VIRTUAL_ENV"))
    }
    shown = " ".join(str(part) for part in command)
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**environment, "RAY_MONO_TMPDIR": str(cwd / "t")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        output = (
            error.stdout if isinstance(error.stdout, str) else (error.stdout or b"").decode(errors="replace")
        )
        raise CheckFailed(f"{shown}: did not end within {COMMAND_TIMEOUT_S:g} s\n{output[-4000:]}") from None
    if done.returncode != 0:
        raise CheckFailed(f"{shown}: exit status {done.returncode}\n{done.stdout[-4000:]}")
    return done.stdout


class Environment:
    """A fresh virtualenv, in a folder of its own with a short path: sockets lie below it."""

    def __init__(self, folder: Path, python: str) -> None:
        self.folder = folder
        self.bin = folder / "venv" / "bin"
        folder.mkdir()
        run([python, "-m", "venv", folder / "venv"], folder)

    def pip(self, *arguments: str | Path, cwd: Path | None = None) -> str:
        return run(
            [self.bin / "python", "-m", "pip", "--disable-pip-version-check", *arguments], cwd or self.folder
        )

    def versions(self) -> str:
        return ", ".join(self.pip("freeze", "--exclude", "ray_mono").split())


def check(versions: Versions, base: Path, wheel: Path) -> str | None:
    """Installs and tries one set. Returns what failed."""
    environment = None
    began_s = time.monotonic()
    try:
        environment = Environment(base / versions.name, versions.python)
        folder, python = environment.folder, environment.bin / "python"
        constraints = folder / "constraints.txt"
        constraints.write_text("\n".join(versions.constraints))
        tree = copy_of_tree(folder / "tree")
        if versions.from_tree:
            environment.pip("install", "--quiet", ".", cwd=tree)
        what = [f".{EXTRAS}"] if versions.from_tree else [f"{wheel}{EXTRAS}"]
        only = ["--quiet", "--only-binary", ":all:", "--constraint", str(constraints)]
        environment.pip("install", *only, *what, *BESIDES, cwd=tree)
        work = folder / "w"
        work.mkdir()
        run([python, SMOKE], work)
        for example in (["wordcount.py"], ["pong.py", "--batches", "1"], ["ported/compare.py"]):
            run([python, tree / "examples" / example[0], *example[1:]], work)
    except CheckFailed as error:
        beside = (
            environment.versions()
            if environment is not None and environment.bin.exists()
            else "nothing installed"
        )
        return f"{versions.name} FAILED ({versions.python}; {beside})\n{error}"
    print(
        f"{versions.name}: passed in {time.monotonic() - began_s:.0f} s ({environment.versions()})",
        flush=True,
    )
    return None


def build_wheel(base: Path) -> Path:
    """As `pip install .` builds it: in isolation, with what pyproject.toml asks for."""
    tree = copy_of_tree(base / "build")
    run([sys.executable, "-m", "venv", base / "builder"], base)
    builder = [base / "builder" / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
    run([*builder, "wheel", "--quiet", "--no-deps", "--wheel-dir", base, "."], tree)
    return next(base.glob("*.whl"))


def main() -> int:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    every = [
        Versions("newest", sys.executable, from_tree=True),
        Versions("oldest", sys.executable, constraints=oldest_allowed(project)),
        *(Versions(f"newest-{python}", find_python(python) or "") for python in PYTHONS[1:]),
    ]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "sets", nargs="*", metavar="SET", help=f"of {', '.join(v.name for v in every)}; all by default"
    )
    wanted = parser.parse_args().sets or [versions.name for versions in every]
    if unknown := set(wanted) - {versions.name for versions in every}:
        parser.error(
            f"SET must be one of {', '.join(versions.name for versions in every)}, got {sorted(unknown)}"
        )
    chosen = [versions for versions in every if versions.name in wanted]
    for versions in chosen:
        if not versions.python:
            print(f"{versions.name}: skipped, since this machine has no such Python", flush=True)
    with tempfile.TemporaryDirectory(prefix="rmi") as folder, ThreadPoolExecutor(2) as pool:
        base = Path(folder)
        wheel = build_wheel(base)
        failures = list(
            pool.map(lambda versions: check(versions, base, wheel), [v for v in chosen if v.python])
        )
    for failure in filter(None, failures):
        print(failure, file=sys.stderr)
    return 1 if any(failures) else 0


if __name__ == "__main__":
    sys.exit(main())
