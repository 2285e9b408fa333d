"""Command lines of workers that no template forks."""

from __future__ import annotations

import pytest

from ray_mono.raylet.worker.worker_command import (
    DYNAMIC_OPTION,
    NODE_MANAGER_PORT,
    STARTUP_TOKEN,
    worker_command,
)


def test_placeholders_are_replaced_and_options_become_arguments_of_their_own() -> None:
    command = (
        f"java -Dport={NODE_MANAGER_PORT} '-Dname=two words' {DYNAMIC_OPTION} Worker --token {STARTUP_TOKEN}"
    )
    assert worker_command(command, 7001, 5, b"w", ["-Xmx1g", "-ea"]) == [
        *("java", "-Dport=7001", "-Dname=two words", "-Xmx1g", "-ea", "Worker", "--token", "5")
    ]
    assert worker_command(command, 7001, 5, b"w")[3] == "Worker"


def test_a_command_without_a_program_is_refused() -> None:
    with pytest.raises(ValueError, match="must name a program"):
        worker_command(DYNAMIC_OPTION, 1, 1, b"w")
