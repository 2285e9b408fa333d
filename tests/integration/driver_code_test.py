"""What of a driver reaches its workers: its modules, its functions as they are when they are defined, and
those that all workers run.

All programs here are drivers of one cluster that the command line made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.clusters import CommandLineCluster
from tests.integration.scripts import Script


@pytest.fixture(scope="module")
def cluster(shared_base: Path) -> Iterator[CommandLineCluster]:
    cluster = CommandLineCluster(shared_base, num_cpus=2)
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def driver(cluster: CommandLineCluster, start_script: Callable[..., Script]) -> Callable[..., Script]:
    """driver(source): a script that runs."""
    return start_script


def test_modules_beside_the_script_and_in_the_current_directory_are_found(
    cluster: CommandLineCluster, driver: Any, tmp_path: Path
) -> None:
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "beside_script.py").write_text("value = 'beside'\n")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "in_directory.py").write_text("value = 'directory'\n")
    source = """
        import ray_mono as ray

        @ray.remote
        def find():
            import sys
            import beside_script, in_directory
            return beside_script.value, in_directory.value, sys.path[0]

        @ray.remote
        class Finder:
            def __init__(self):
                import beside_script
                self.value = beside_script.value

            def find(self):
                return self.value

        import sys
        ray.init("auto")
        assert ray.get(find.remote(), timeout=60) == ("beside", "directory", sys.path[0])
        assert ray.get(Finder.remote().find.remote(), timeout=60) == "beside"
    """
    driver(source, cwd=tmp_path / "elsewhere").check_ended_well()


def test_a_function_that_is_defined_again_is_the_new_one(driver: Any) -> None:
    source = """
        import ray_mono as ray

        ray.init("auto")
        FACTOR = 1

        def make(text):
            @ray.remote
            def f():
                return text, FACTOR
            return f

        @ray.remote
        def g():
            return "old"

        old = g
        assert ray.get([make("a").remote() for _ in range(4)], timeout=60) == [("a", 1)] * 4
        assert ray.get(g.remote(), timeout=60) == "old"

        @ray.remote
        def g():
            return "new"

        assert ray.get([g.remote(), old.remote(), g.remote()], timeout=60) == ["new", "old", "new"]
        FACTOR = 2
        assert ray.get([make("a").remote(), make("b").remote()], timeout=60) == [("a", 2), ("b", 2)]
    """
    driver(source).check_ended_well()


def test_a_class_that_is_defined_again_is_the_new_one_for_new_actors(driver: Any) -> None:
    source = """
        import ray_mono as ray

        ray.init("auto")

        class Helper:
            text = "old"

        @ray.remote(num_cpus=0)
        class Actor:
            def say(self):
                return Helper.text

        first = Actor.remote()
        assert ray.get(first.say.remote(), timeout=60) == "old"

        class Helper:
            text = "new"

        @ray.remote(num_cpus=0)
        class Actor:
            def say(self):
                return Helper.text + "!"

        second = Actor.remote()
        assert ray.get([first.say.remote(), second.say.remote()], timeout=60) == ["old", "new!"]
    """
    driver(source).check_ended_well()


def test_functions_for_all_workers_run_on_those_that_are_there_and_those_to_come(driver: Any) -> None:
    source = """
        import os
        import ray_mono as ray

        def mark(name):
            def run(info):
                assert "worker" in info
                os.environ[name] = os.environ.get(name, "") + "x"
            return run

        @ray.remote
        def marks():
            return os.getpid(), [os.environ.get(name) for name in ("BEFORE", "AFTER", "BROKEN")]

        @ray.remote
        class Marked:
            def marks(self):
                return ray.get(marks.remote())[1], marks._function()[1]

        ray.run_function_on_all_workers(mark("BEFORE"))
        assert "BEFORE" not in os.environ
        ray.init("auto")
        assert os.environ["BEFORE"] == "x"
        there = {pid: found for pid, found in ray.get([marks.remote() for _ in range(8)], timeout=60)}
        assert set(map(tuple, there.values())) == {("x", None, None)}, there
        ray.run_function_on_all_workers(mark("AFTER"))
        later = ray.get([marks.remote() for _ in range(8)], timeout=60)
        assert all(found == ["x", "x", None] for _, found in later), later

        class Broken(Exception):
            pass

        def broken(info):
            os.environ["BROKEN"] = "x"
            raise Broken

        # It is tried here first: what fails here reaches no worker.
        try:
            ray.run_function_on_all_workers(broken)
        except Broken:
            print("told")
        assert ray.get(marks.remote(), timeout=60)[1] == ["x", "x", None]
        # New workers: actors have a process each.
        actors = [Marked.options(num_cpus=0).remote() for _ in range(4)]
        for found in ray.get([actor.marks.remote() for actor in actors], timeout=60):
            assert found == (["x", "x", None],) * 2, found
        ray.shutdown()
        # Of another job nothing is marked; this process keeps what it was given.
        ray.init("auto")
        assert ray.get(marks.remote(), timeout=60)[1] == ["x", "x", None]
    """
    assert "told" in driver(source).check_ended_well()


def test_another_job_is_not_marked_by_functions_for_all_workers(driver: Any) -> None:
    source = """
        import os
        import ray_mono as ray

        ray.init("auto")
        assert ray.get(ray.remote(lambda: os.environ.get("BEFORE")).remote(), timeout=60) is None
    """
    driver(source).check_ended_well()
