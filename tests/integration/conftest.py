"""One real cluster of 2 CPUs, or one of two nodes, for all tests of a file that say so, and what their
programs share.

Whatever has to happen in some order is arranged by files that tasks make and wait for, never by time.
"""

from __future__ import annotations

import shutil
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ray_mono as ray
from ray_mono import cloudpickle
from ray_mono._private.node.session import NodeRecord
from tests.conftest import OUTSIDE_VARIABLES, end_processes, leftovers, processes_of, shared_memory_of
from tests.integration.clusters import CommandLineCluster, driven_cluster
from tests.integration.nothing_left import wait_for_nothing_left
from tests.integration.scripts import Script
from tests.waiting import wait_until

NUM_CPUS = 2


@pytest.fixture(scope="module")
def shared_base() -> Iterator[Path]:
    """The base directory of the file's sessions, new and short; at the end of the file nothing of them may be
    left."""
    base = Path(tempfile.mkdtemp(prefix="rm-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        for variable in OUTSIDE_VARIABLES:
            patch.delenv(variable, raising=False)
        patch.setenv("RAY_MONO_TMPDIR", str(base))
        patch.setenv("HOME", str(base))
        try:
            yield base
            ray.shutdown()
            assert not (left := leftovers(base, set())), left
        finally:
            ray.shutdown()
            end_processes(processes_of(base, set()))
            for path in shared_memory_of(base):
                path.unlink(missing_ok=True)
            shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="module")
def shared_cluster(shared_base: Path) -> Any:
    """What `init` returned."""
    return ray.init(address="local", num_cpus=NUM_CPUS)


@pytest.fixture(scope="module")
def by_value(request: pytest.FixtureRequest) -> Iterator[None]:
    """Many workers of the file need not import it, and pytest with it."""
    cloudpickle.register_pickle_by_value(request.module)
    yield
    cloudpickle.unregister_pickle_by_value(request.module)


@pytest.fixture
def leaves_nothing(shared_cluster: Any) -> Iterator[None]:
    """The test is a program on the shared cluster that lets go of everything."""
    yield
    wait_for_nothing_left()


@pytest.fixture(scope="module")
def cluster(shared_base: Path) -> Iterator[CommandLineCluster]:
    """Started from the command line: the head, with 1 CPU and 4 of "here"; `second` adds the other node."""
    with driven_cluster(shared_base, num_cpus=1, resources={"here": 4}) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def second(cluster: CommandLineCluster) -> NodeRecord:
    """The other node, with 2 CPUs and 4 of "there". From here on the tests' process is a driver on the
    head."""
    node = cluster.add_node(num_cpus=2, resources={"there": 4})
    ray.init(address=cluster.address)
    return node


@pytest.fixture
def leaves_nothing_on_both(cluster: CommandLineCluster, second: NodeRecord) -> Iterator[None]:
    """As leaves_nothing, for both nodes."""
    yield
    wait_for_nothing_left()
    wait_until(lambda: not cluster.stats(second).num_objects, "an empty store on the second node")


@pytest.fixture
def touch_and_wait() -> Callable[[str | None, str | None], None]:
    """touch_and_wait(made, awaited): a function for tasks that makes one file and waits for another."""

    def function(made: str | None, awaited: str | None) -> None:
        import pathlib
        import time

        if made:
            pathlib.Path(made).touch()
        deadline_s = time.monotonic() + 60
        while awaited and not pathlib.Path(awaited).exists():
            assert time.monotonic() < deadline_s, f"{awaited} did not appear"
            time.sleep(0.01)

    return function


@pytest.fixture
def start_script(tmp_path: Path) -> Iterator[Callable[..., Script]]:
    """start_script(source, *arguments, cwd=None, name=...): a Script that runs, whose file lies in
    tmp_path/script."""
    scripts: list[Script] = []

    def run(source: str, *arguments: str, cwd: Path | None = None, name: str = "program.py") -> Script:
        path = tmp_path / "script" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(source))
        scripts.append(Script(path, *arguments, cwd=cwd))
        return scripts[-1]

    yield run
    for script in scripts:
        script.kill()


@pytest.fixture
def start(session_base: Path, start_script: Callable[..., Script]) -> Callable[..., Script]:
    """start_script, for programs that make clusters of their own."""
    return start_script
