"""`import ray_mono` is light, since every process of a cluster does it; names come when they are used."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import ray_mono

PACKAGE = Path(ray_mono.__file__).parent
HEAVY = ("numpy", "google.protobuf", "grpc", "cloudpickle", "asyncio", "typing")


def run(
    code: str, *arguments: str, path: Path = PACKAGE.parent, flags: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *flags, "-c", f"import sys; sys.path.insert(0, {str(path)!r})\n{code}", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_importing_the_package_imports_nothing_else() -> None:
    done = run(
        "before = set(sys.modules)\nimport ray_mono\nprint(*sorted(set(sys.modules) - before - {'ray_mono'}))"
    )
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_services_modules_load_without_what_only_workers_need() -> None:
    done = run(
        f"import ray_mono.common.exceptions\nprint(*[m for m in {('numpy', 'grpc')} if m in sys.modules])"
    )
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_every_exported_name_is_there_and_listed() -> None:
    for name in ray_mono.__all__:
        assert getattr(ray_mono, name) is not None
        assert name in dir(ray_mono)
    assert ray_mono.__version__ == "0.1.0" and ray_mono.__commit__
    assert isinstance(ray_mono.exceptions.RayTaskError, type)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ray_mono.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_type_checkers_see_the_names_that_there_are() -> None:
    module = ast.parse((PACKAGE / "__init__.py").read_text())
    block = next(
        node for node in module.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    seen = {alias.asname for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    seen |= {
        node.target.id
        for node in block.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    assert seen == set(ray_mono.__all__)


def test_errors_are_the_same_objects_wherever_they_are_imported_from() -> None:
    from ray_mono.common import exceptions

    for name in exceptions.__all__:
        assert getattr(ray_mono.exceptions, name) is getattr(exceptions, name)


@pytest.mark.parametrize("name", ["ray_mono", "ray"])
def test_what_a_program_lets_go_at_its_end_may_ask_whether_it_is_connected(name: str) -> None:
    program = """
class Holder:
    def __del__(self):
        if not ray.is_initialized():
            print("has ended")
        ray.shutdown()

ray.init(local_mode=True)
holder = Holder()
"""
    compat = "from ray_mono import compat; compat.install()\n" if name == "ray" else ""
    done = run(f"{compat}import {name} as ray\n{program}")
    assert (done.stdout.strip(), done.stderr) == ("has ended", "")


def test_a_checkout_without_generated_code_says_in_one_line_what_to_run(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "python" / "ray_mono", ignore=shutil.ignore_patterns("__pycache__"))
    sources = Path(ray_mono.__path__[-1])
    for component in ("common", "core_worker", "rpc"):
        shutil.copytree(
            sources / component, tmp_path / "src" / component, ignore=shutil.ignore_patterns("__pycache__")
        )
    (tmp_path / "src" / "protobuf").mkdir()
    # Without `site`, whose editable install of another checkout would lend its generated code.
    lines = [
        f"sys.path += {[path for path in sys.path if 'site-packages' in path]}",
        "import ray_mono",
        "ray_mono.init()",
    ]
    done = run("\n".join(lines), path=tmp_path / "python", flags=["-S"])
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "pip install -e ." in last and "./bazelw run //:demo" in last
    assert "During handling" not in done.stderr
