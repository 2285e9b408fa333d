"""How Python itself was started, and what lies in the current directory, is not in a cluster's way."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.scripts import FOOTER, Script

Start = Callable[..., Script]
# Some that every process of a cluster imports at its start, and some that one may import at any later time.
STANDARD_NAMES = (
    "asyncio",
    "enum",
    "json",
    "logging",
    "queue",
    "secrets",
    "selectors",
    "socket",
    "statistics",
    "token",
)
PROGRAM = textwrap.dedent("""
    import os
    import ray_mono as ray

    @ray.remote
    def f(x):
        import beside_the_caller, statistics
        return statistics.mean([x, x]) + beside_the_caller.ONE

    @ray.remote
    class A:
        def pid(self):
            return os.getpid()

    ray.init(num_cpus=2)
    assert ray.get([f.remote(i) for i in range(4)], timeout=60) == [1, 2, 3, 4]
    assert ray.get(A.remote().pid.remote(), timeout=60) != os.getpid()
""")


def test_files_in_the_current_directory_stand_in_for_no_module_that_the_driver_has_from_elsewhere(
    start: Start, tmp_path: Path
) -> None:
    current = tmp_path / "current"
    current.mkdir()
    for name in STANDARD_NAMES:
        (current / f"{name}.py").write_text("raise SystemExit(f'the wrong {__name__} was imported')\n")
    # What is nowhere else is found there, as in Ray.
    (current / "beside_the_caller.py").write_text("ONE = 1\n")
    start(PROGRAM + FOOTER, cwd=current).check_ended_well()


def test_workers_start_where_something_starts_a_thread_in_every_interpreter(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the interpreter was named by a path with dots, and where the template dies and another takes
    its place."""
    (tmp_path / "beside_the_caller.py").write_text("ONE = 1\n")
    (tmp_path / "sitecustomize.py").write_text(
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(1e6,), daemon=True, name='agent').start()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "executable", os.path.join(tmp_path, os.path.relpath(sys.executable, tmp_path)))
    killed = textwrap.dedent("""
        from tests.integration.titles import processes_below

        (template,) = processes_below("ray_mono::TEMPLATE")
        template.kill()
        template.wait(30)
        assert ray.get(f.options(max_retries=5).remote(1), timeout=60) == 2
    """)
    start(PROGRAM + killed + FOOTER).check_ended_well()
