"""Runs mypy over src/ and python/, with the settings in pyproject.toml.

    python tools/typecheck.py [what mypy is to get besides]

The package `ray_mono` lies in two places, which its __init__.py joins when it runs and mypy cannot. So mypy
is shown a folder of links in which it lies in one, and its messages are translated back to the real paths.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).absolute().parent.parent


class NameTaken(Exception):
    """python/ray_mono and src/ both have an entry of one name, so one of them could never be imported."""


def link_tree(root: Path, tree: Path) -> list[str]:
    """Makes tree/ray_mono of links to the parts; returns the names of those in src/. Raises NameTaken."""
    package = tree / "ray_mono"
    shutil.rmtree(tree, ignore_errors=True)
    package.mkdir(parents=True)
    components = [
        entry.name
        for entry in sorted((root / "src").iterdir())
        if entry.is_dir() and entry.name != "__pycache__"
    ]
    for entry in (root / "python" / "ray_mono").iterdir():
        if entry.name in components:
            raise NameTaken(
                f"both python/ray_mono/{entry.name} and src/{entry.name} would be ray_mono.{entry.name}"
            )
        (package / entry.name).symlink_to(entry)
    for name in components:
        (package / name).symlink_to(root / "src" / name)
    return components


def real_path(line: str, components: list[str]) -> str:
    """A line of mypy's output with the path that the file really has."""
    match = re.match(r"ray_mono/([\w-]+)", line)
    if not match:
        return line
    if match[1] in components:
        return "src/" + line.removeprefix("ray_mono/")
    return "python/" + line


def check(root: Path, cache: Path, arguments: list[str]) -> tuple[int, str]:
    """mypy's exit code and its messages. The cache may be kept from run to run. Raises NameTaken."""
    components = link_tree(root, cache / "tree")
    command = [
        sys.executable,
        "-m",
        "mypy",
        f"--config-file={root / 'pyproject.toml'}",
        f"--cache-dir={cache}",
        "-p",
        "ray_mono",
        *arguments,
    ]
    done = subprocess.run(
        command, cwd=cache / "tree", env={**os.environ, "MYPYPATH": ""}, capture_output=True, text=True
    )
    return done.returncode, "".join(
        real_path(line, components) + "\n" for line in (done.stdout + done.stderr).splitlines()
    )


def main() -> int:
    if not (ROOT / "src" / "protobuf" / "__init__.py").exists():
        print("typecheck: no generated code yet: python tools/generate_protos.py makes it", file=sys.stderr)
        return 1
    code, messages = check(ROOT, ROOT / ".mypy_cache", sys.argv[1:])
    print(messages, end="")
    return code


if __name__ == "__main__":
    sys.exit(main())
