"""The template of workers that another process started: whether it lives, and its end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from ray_mono.raylet.worker.launcher import AdoptedTemplate
from tests.waiting import wait_until


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """The parent of the template is the test."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as made:
        yield made
        made.kill()


def test_a_template_that_never_said_who_it_is_has_ended() -> None:
    assert AdoptedTemplate().poll() == 0


def test_a_template_lives_until_it_ends(process: subprocess.Popen[bytes]) -> None:
    template = AdoptedTemplate()
    template.watch(process.pid)
    assert template.poll() is None
    process.kill()
    wait_until(lambda: template.poll() is not None, "the template's end is seen")


def test_a_template_can_be_killed_and_need_not_live_for_that(process: subprocess.Popen[bytes]) -> None:
    template = AdoptedTemplate()
    template.watch(process.pid)
    template.kill()
    wait_until(lambda: template.poll() is not None, "the template's end is seen")
    template.kill()
    assert process.wait() < 0
