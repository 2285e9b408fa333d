"""Packages of others that say `import ray`, run under ray_mono.compat in virtualenvs of their own.

By hand: it takes minutes, and needs the package index that pip is configured for. torch is gigabytes where
pip finds it for GPUs.

    python tests/strangers/check.py [NAME ...]

    modin, daft, hamilton, ray-ease     their core use: NAME_use.py beside this file
    jupyter                             a notebook's kernel: cells, their output and errors, and Ctrl-C at any
                                        time
    torch, polars                       do not say `import ray`, but their values are stored: what these cost,
                                        and what they are afterwards
    raylings                            the solutions of a tutorial, one program after another; those of parts
                                        that are not there yet fail

Prints a line for each program. The exit status is 1 if one fails that is not in EXPECTED_TO_FAIL.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent.parent))

from tests.installed.check import CheckFailed, Environment, build_wheel, run  # noqa: E402

# What pip is asked for. `ray` itself, which some of them require, is not installed: pip is told which other
# packages they need.
PACKAGES = {
    "modin": (["modin", "pandas<2.4", "pyarrow"], []),
    "daft": (["daft", "pandas"], []),
    "hamilton": (["apache-hamilton", "pandas"], []),
    "ray-ease": (["tqdm"], ["ray-ease"]),
    "jupyter": (["ipykernel", "jupyter_client"], []),
    "torch": (["torch"], []),
    "polars": (["polars", "pyarrow", "scipy"], []),
    "raylings": (["numpy", "pandas", "pyarrow", "rich", "typer"], ["raylings"]),
}
CHAPTERS_OF_LIBRARIES = ("08_", "10_", "11_", "12_", "16_", "17_")
# Each with what it needs that is not there yet.
EXPECTED_TO_FAIL = {
    **({"basics05": "a third CPU, as in Ray"} if (os.cpu_count() or 1) < 3 else {}),
    **dict.fromkeys(("scheduling03", "scheduling04", "scheduling05"), "placement groups"),
    "cluster04": "job submission",
    "perf01": "'task' in the names of a timeline's events, which are the functions' here",
    **dict.fromkeys(("perf02", "perf03"), "the state API"),
    "finance03": "ray.data",
}


def install(name: str, wheel: Path, folder: Path) -> Environment:
    """A virtualenv that has it and what it needs."""
    environment = Environment(folder / name, sys.executable)
    with_needs, alone = PACKAGES[name]
    environment.pip("install", "--quiet", str(wheel), *with_needs)
    if alone:
        environment.pip("install", "--quiet", "--no-deps", *alone)
    return environment


def programs(name: str, environment: Environment) -> Iterator[Path]:
    if name != "raylings":
        yield FOLDER / f"{name.replace('-', '_')}_use.py"
        return
    where = "import os, raylings; print(os.path.dirname(raylings.__file__))"
    solutions = Path(run([environment.bin / "python", "-c", where], environment.folder).strip()) / "solutions"
    for path in sorted(solutions.rglob("*.py")):
        if not path.parent.name.startswith(CHAPTERS_OF_LIBRARIES):
            yield path


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PACKAGES)}; all by default")
    names = parser.parse_args().names or list(PACKAGES)
    if unknown := set(names) - PACKAGES.keys():
        parser.error(f"NAME must be one of {', '.join(PACKAGES)}, got {', '.join(unknown)}")
    failed = False
    with tempfile.TemporaryDirectory(prefix="rms") as folder:
        wheel = build_wheel(Path(folder))
        for name in names:
            try:
                environment = install(name, wheel, Path(folder))
            except CheckFailed as error:
                failed = True
                print(f"{name}: cannot be installed\n{error}", flush=True)
                continue
            for program in programs(name, environment):
                try:
                    run([environment.bin / "python", "-m", "ray_mono.compat", program], environment.folder)
                    print(f"{name} {program.stem}: passed", flush=True)
                except CheckFailed as error:
                    why = EXPECTED_TO_FAIL.get(program.stem)
                    failed = failed or why is None
                    said = f"fails for want of {why}" if why else f"FAILED\n{error}"
                    print(f"{name} {program.stem}: {said}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
