"""`import ray` under ray_mono.compat, in processes that ask for it; what needs no cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.clusters import Done, run_python


def run(code: str, *flags: str) -> str:
    """What a program prints that has installed compat."""
    done = run_python(*flags, "-c", f"import ray_mono.compat\nray_mono.compat.install()\n{code}")
    assert done.status == 0, done.error
    return done.out + done.error


def test_every_name_below_ray_is_the_object_of_ray_mono() -> None:
    code = """
import sys
import ray
from ray.util import list_named_actors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as mine
import ray.exceptions
import ray_mono, ray_mono.common.version, ray_mono.util.scheduling_strategies
assert ray.util is ray_mono.util and sys.modules["ray"] is ray
assert ray.__version__ == "2.60.0" and ray_mono.__version__ == ray_mono.common.version.VERSION
from importlib import metadata
assert metadata.version("ray") == metadata.version("Ray") == "2.60.0" and metadata.version("click")
assert [each.name for each in metadata.distributions()].count("ray") == 1 and metadata.requires("ray") is None
ray.get = ray_mono.put
assert ray_mono.get is ray_mono.put is ray.get
assert mine is ray_mono.util.scheduling_strategies.NodeAffinitySchedulingStrategy
assert ray.exceptions.RayTaskError is ray_mono.exceptions.RayTaskError
assert ray.remote is ray_mono.remote and ray.init is ray_mono.init
"""
    run(code)


def test_a_lazy_import_gives_the_same_names() -> None:
    code = """
import importlib.util, sys
spec = importlib.util.find_spec("ray")
spec.loader = importlib.util.LazyLoader(spec.loader)
ray = sys.modules["ray"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ray)
import ray_mono
assert ray.remote is ray_mono.remote and ray.__version__ == "2.60.0"
import ray.exceptions
assert ray.exceptions is ray_mono.exceptions
"""
    run(code)


def test_modules_keep_their_own_names_and_import_relatives() -> None:
    code = """
import importlib
module = importlib.import_module("ray.util.serialization")
assert module.__name__ == module.__spec__.name == "ray_mono.util.serialization", module.__spec__
import ray.util
assert ray.util.__spec__.submodule_search_locations
import sys
assert sys.modules["ray.util"] is sys.modules["ray_mono.util"]
"""
    run(code)


def test_what_ray_mono_lacks_cannot_be_imported() -> None:
    code = """
for name in ("ray.nothing", "ray.util.nothing", "ray.nothing.below"):
    try:
        __import__(name)
    except ModuleNotFoundError as error:
        print(error)
"""
    assert run(code).splitlines() == [
        "No module named 'ray.nothing'",
        "No module named 'ray.util.nothing'",
        "No module named 'ray.nothing'",
    ]


def test_pickles_that_name_ray_load() -> None:
    code = """
import pickle
found = pickle.loads(b"cray.exceptions\\nGetTimeoutError\\n.")
import ray_mono
assert found is ray_mono.exceptions.GetTimeoutError
"""
    run(code)


def test_nothing_is_aliased_in_a_process_that_does_not_ask() -> None:
    code = (
        "import sys, ray_mono, ray_mono.compat\n"
        "assert not [each for each in sys.meta_path if 'Alias' in type(each).__name__]"
    )
    done = run_python("-c", code)
    assert done.status == 0, done.error


def test_a_ray_that_is_loaded_already_is_refused() -> None:
    code = """
import sys, types
sys.modules["ray"] = types.ModuleType("ray")
import ray_mono.compat
ray_mono.compat.install()
"""
    done = run_python("-c", code)
    assert done.status == 1 and "before anything imports ray" in done.error


def run_script(path: Path, *arguments: str) -> Done:
    return run_python("-m", "ray_mono.compat", *arguments, str(path), "one", "--two")


def test_a_script_runs_as_main_with_its_own_arguments_and_directory(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("VALUE = 4\n")
    script = tmp_path / "program.py"
    script.write_text(
        "import sys, ray, beside\n"
        "print(__name__, __file__ == sys.argv[0], sys.argv[1:], ray.__name__, beside.VALUE)\n"
        "sys.exit(5)\n"
    )
    done = run_script(script)
    assert (done.status, done.out, done.error) == (5, "__main__ True ['one', '--two'] ray 4\n", "")


def test_a_script_is_compiled_and_told_of_as_by_python_itself(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        "import dataclasses, ray\n"
        "@dataclasses.dataclass\n"
        "class Point:\n"
        "    x: int = 0\n"
        "print(dataclasses.fields(Point)[0].type, __spec__, __annotations__, __builtins__.len)\n"
        "raise ValueError('of the program')\n"
    )
    by_compat = run_script(script)
    assert by_compat.out == "<class 'int'> None {} <built-in function len>\n"
    script.write_text(script.read_text().replace(", ray", ""))
    by_python = run_python(str(script), "one", "--two")
    assert (by_compat.status, by_compat.error) == (by_python.status, by_python.error) == (1, by_python.error)
    assert by_compat.error.startswith("Traceback (most recent call last):\n")


def test_threads_outlive_the_module_that_started_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "program.py").write_text(
        "import threading\n"
        "VALUE = 'of the module'\n"
        "def late():\n"
        "    threading.main_thread().join()\n"
        "    print(__name__, VALUE)\n"
        "threading.Thread(target=late).start()\n"
    )
    done = run_python("-m", "ray_mono.compat", "-m", "program")
    assert (done.status, done.out, done.error) == (0, "__main__ of the module\n", "")


def test_a_module_runs_with_m(tmp_path: Path) -> None:
    done = run_python("-m", "ray_mono.compat", "-m", "json.tool", "--help")
    assert done.status == 0 and "json.tool" in done.out


def test_only_the_program_has_to_be_given() -> None:
    done = run_python("-m", "ray_mono.compat")
    assert done.status == 2 and done.error.endswith("required: PROGRAM\n"), done.error


def test_a_script_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = run_script(tmp_path / "nothing.py")
    assert done.status == 1 and "can't open file" in done.error and "nothing.py" in done.error
