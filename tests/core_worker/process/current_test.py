"""The core of this process, as user code finds it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from ray_mono.common.exceptions import RaySystemError
from ray_mono.core_worker.process import current
from tests.core_worker.scene import Scene


@pytest.fixture(autouse=True)
def nobody_afterwards() -> Iterator[None]:
    before = current.core
    current.set(None)
    yield
    current.set(before)


def in_child(is_so: Callable[[], bool]) -> bool:
    """Whether it is so in a fork."""
    child = os.fork()
    if not child:
        os._exit(not is_so())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def refusal() -> str:
    try:
        current.require()
    except RaySystemError as error:
        return str(error)
    return ""


def test_who_is_not_connected_is_told_to_connect() -> None:
    assert current.core is None and "call ray_mono.init() first" in refusal()


def test_the_core_is_found() -> None:
    scene = Scene()
    current.set(scene.core)
    assert current.core is current.require() is scene.core


def test_a_fork_of_a_connected_process_has_none_and_says_why() -> None:
    scene = Scene()
    current.set(scene.core)
    assert in_child(lambda: current.core is None and current.is_fork() and current.FORK_MESSAGE in refusal())
    assert in_child(lambda: scene.reactor.is_closed and scene.context.is_leaving)
    assert not current.is_fork() and current.require() is scene.core and not scene.reactor.is_closed


def test_a_fork_of_one_that_is_not_connected_is_as_good_as_any_process() -> None:
    assert in_child(lambda: not current.is_fork() and "call ray_mono.init() first" in refusal())


def test_a_fork_may_connect_itself() -> None:
    current.set(Scene().core)

    def connects() -> bool:
        own = Scene().core
        current.set(own)
        return current.require() is own

    assert in_child(connects)
