"""`import ray` that means ray_mono, for programs and libraries that cannot be changed.

    python -m ray_mono.compat prog.py [args]        runs a script so
    python -m ray_mono.compat -m package [args]     runs a module so
    ray_mono.compat.install()                       the same for the rest of this process, and its workers

Everything below `ray` is then the very thing of ray_mono: `ray.exceptions.RayTaskError is
ray_mono.exceptions.RayTaskError`, and pickles that name either load. `ray.__version__` is that of Ray's API
("2.60.0"). In `_private/compat`: Ray's environment variables are honoured (`ray_environment.py`), names of
Ray 0.8 to 1.x work and warn (`old_names.py`), and modules that only libraries need are there (`ray_modules`).
Python processes that the program starts import `ray` alike (`_private/ray_children.py`). With `-m
ray_mono.compat`, shells find `ray`, the command line (`ray_command.py`). Nothing of this happens in a process
that does not ask for it and was not started by one that did.

Workers are told by the job's configuration, and install this before they run anything of the job.
"""

from __future__ import annotations

import sys

# With -m that is the current directory, whose files may have the names of modules that we import. A script's
# program does not search it.
if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]

import argparse
import builtins
import os
import runpy
from importlib.machinery import SourceFileLoader
from types import ModuleType
from typing import Any

from ray_mono._private import ray_children
from ray_mono._private.compat import old_names, ray_command, ray_environment, ray_modules
from ray_mono._private.compat.module_alias import AliasFinder, installed
from ray_mono._private.driver import connection
from ray_mono.core_worker.process import current

ALIAS = "ray"
PACKAGE = "ray_mono"
# What programs that need some version of Ray are told; ours stays ray_mono.__version__.
API_VERSION = "2.60.0"
WORKER_SETUP = "ray_mono.compat:install_in_worker"


def install() -> None:
    """Makes `import ray` mean ray_mono. Does nothing the second time.

    Best before anything imports `ray`, and before `init`. Raises RuntimeError where Ray itself is imported
    already.
    """
    if installed(ALIAS) is not None:
        return
    real = sys.modules.get(ALIAS)
    if real is not None and real.__name__ != PACKAGE:
        raise RuntimeError(
            f"ray itself is imported in this process already, from {getattr(real, '__file__', None)}:"
            " install ray_mono.compat"
            " before anything imports ray"
        )
    own = {"__version__": API_VERSION}
    finder = AliasFinder(
        ALIAS, PACKAGE, old_names.MOVED_MODULES, old_names.warn_of_module, own, ray_modules.PLACES
    )
    sys.meta_path.insert(0, finder)
    ray_environment.take_over()
    ray_modules.install()
    old_names.install()
    ray_children.put_on_python_path()
    connection.worker_setup.append(WORKER_SETUP)
    core = current.core
    if core is not None and core.is_driver:
        # Connected already: the configuration of its job, by which later workers would know, is fixed.
        core.run_function_on_all_workers(install_in_worker)


def install_in_worker(about: object) -> None:
    """Called by workers. about: the configuration of the job, or which worker this is; not needed."""
    install()


def main(arguments: list[str] | None = None) -> None:
    """Runs a script or a module as `__main__`, with the rest of the command line as its own."""
    parser = argparse.ArgumentParser(
        prog="python -m ray_mono.compat",
        description="Runs a program in which `import ray` means ray_mono, here and in its workers.",
        epilog="Ray's environment variables count (RAY_ADDRESS, RAY_NAMESPACE, RAY_RUNTIME_ENV_HOOK,"
        " RAY_TMPDIR, ...), and names of Ray 0.8 to 1.x work and warn (show the warnings with"
        " python -W default). What differs from Ray:"
        " docs/differences.md.",
    )
    parser.add_argument("-m", dest="is_module", action="store_true", help="PROGRAM is a module's name")
    parser.add_argument("program", metavar="PROGRAM", help="a script")
    rest = parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="ARGS", help="the program's own"
    )
    rest.required = False
    given = parser.parse_args(arguments)
    install()
    ray_command.put_on_path(API_VERSION)
    sys.argv = [given.program, *given.arguments]
    run = _run_module if given.is_module else _run_script
    try:
        run(given.program)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        _tell(error)
        sys.exit(1)


def _run_script(given_path: str) -> None:
    """As `python given_path` does."""
    path = os.path.abspath(given_path)
    try:
        with open(path, "rb") as file:
            source = file.read()
    except OSError as error:
        sys.exit(f"{sys.executable}: can't open file {path!r}: {error.strerror}")
    if not sys.flags.safe_path:
        sys.path.insert(0, os.path.dirname(os.path.realpath(path)))
    names = _new_main()
    names.update(__file__=path, __cached__=None, __loader__=SourceFileLoader("__main__", path))
    exec(
        compile(source, path, "exec", dont_inherit=True), names
    )  # what this file has from __future__ is not the program's


def _run_module(name: str) -> None:
    """As `python -m name` does. (run_module would clear the module when it returns, while its threads may
    still run.)"""
    if not sys.flags.safe_path:
        sys.path.insert(0, os.getcwd())
    _new_main()
    runpy._run_module_as_main(name)  # type: ignore[attr-defined]


def _new_main() -> dict[str, Any]:
    """The names of another `__main__`, which stays that to the end of the process: threads, exit hooks and
    pickles look there."""
    module = sys.modules["__main__"] = ModuleType("__main__")
    names = vars(module)
    names.update(__builtins__=builtins, __annotations__={})
    return names


def _tell(error: BaseException) -> None:
    """What Python does with an error that nobody caught, without the frames that lie above the program's."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_frame.f_globals.get("__name__") in (__name__, "runpy"):
        traceback = traceback.tb_next
    error.__traceback__ = traceback
    sys.excepthook(type(error), error, traceback)


if __name__ == "__main__":
    # The module as others import it: state kept in a second copy would be nobody's.
    from ray_mono import compat

    compat.main()
