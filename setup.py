"""What pyproject.toml cannot say: packages lie in two places, and some code is generated before it is packed.

`ray_mono` is python/ray_mono; its components (`ray_mono.gcs`, …) are the folders of src/. The code for
src/protobuf is made by tools/generate_protos.py: when a wheel is built, for an editable install, and into a
source distribution.
"""

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).parent.resolve()


def packages() -> dict[str, str]:
    """Each package's folder, relative to the root."""
    found = {"ray_mono.protobuf": "src/protobuf"}
    for base, prefix in (("python/ray_mono", "ray_mono"), ("src", "ray_mono")):
        for file in sorted((ROOT / base).rglob("*.py")):
            folder = file.parent
            if folder == ROOT / "src":
                continue
            name = ".".join([prefix, *folder.relative_to(ROOT / base).parts])
            found[name] = folder.relative_to(ROOT).as_posix()
    return found


def version() -> str:
    found = runpy.run_path(str(ROOT / "src" / "common" / "version.py"))["VERSION"]
    assert isinstance(found, str)
    return found


def generate_protos() -> None:
    subprocess.run([sys.executable, str(ROOT / "tools" / "generate_protos.py")], check=True)


class GenerateAndBuild(build_py):
    def run(self) -> None:
        generate_protos()
        if not self.editable_mode:
            # Modules that are gone since an earlier build would be packed again.
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class GenerateAndPack(sdist):
    def run(self) -> None:
        generate_protos()
        super().run()


setup(
    version=version(),
    packages=sorted(packages()),
    package_dir=packages(),
    package_data={"ray_mono": ["py.typed"], "ray_mono.protobuf": ["*.pyi"]},
    include_package_data=False,
    cmdclass={"build_py": GenerateAndBuild, "sdist": GenerateAndPack},
)
