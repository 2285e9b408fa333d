"""How the microbenchmark tells processes of a cluster apart, by their command lines."""

from __future__ import annotations

import pytest

from ray_mono.common.process import module_command
from ray_mono.microbenchmark.start import OWN_SERVICES, SHARED_SERVICES, is_worker, names_program


@pytest.mark.parametrize(
    "module",
    ["gcs.gcs_server", "raylet.raylet", "object_manager.object_manager", "_private.logs.log_monitor"],
)
def test_services_of_ours_that_ray_has_too_are_counted_with_its_own(module: str) -> None:
    command = " ".join([*module_command(f"ray_mono.{module}"), "--session-dir", "/sessions/raylet"])
    assert names_program(command, SHARED_SERVICES) and not names_program(command, OWN_SERVICES)


def test_what_a_node_of_ours_needs_besides_is_not() -> None:
    reaper = " ".join([*module_command("ray_mono._private.node.reaper"), "--raylet", "1"])
    for command in (reaper, "ray_mono::TEMPLATE"):
        assert names_program(command, OWN_SERVICES) and not names_program(command, SHARED_SERVICES)
        assert not is_worker(command)


@pytest.mark.parametrize(
    ("command", "is_counted"),
    [
        ("/site/ray/core/src/ray/gcs/gcs_server --log_dir=/logs", True),
        ("/site/ray/core/src/ray/raylet/raylet --raylet_socket_name=/s/raylet", True),
        ("/venv/bin/python -u /site/ray/_private/log_monitor.py --session-dir=/s", True),
        ("/venv/bin/python -u /site/ray/dashboard/agent.py --raylet-name=/s/raylet --log-dir=/s", False),
    ],
)
def test_of_rays_services_those_count_that_do_the_same(command: str, is_counted: bool) -> None:
    assert names_program(command, SHARED_SERVICES) is is_counted


@pytest.mark.parametrize("title", ["ray::IDLE", "ray_mono::IDLE", "ray_mono::Actor.method"])
def test_workers_are_no_services(title: str) -> None:
    assert is_worker(title)
