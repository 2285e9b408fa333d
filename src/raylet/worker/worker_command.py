"""The command line of a worker that no template forks: one in another language, or under another interpreter.

A command is configured once per language, as text with placeholders, because the raylet's port and the
options of a single worker are known only when it is started:

    RAY_MONO_NODE_MANAGER_PORT_PLACEHOLDER      the raylet's TCP port
    RAY_MONO_STARTUP_TOKEN_PLACEHOLDER          what the worker has to register with
    RAY_MONO_WORKER_ID_PLACEHOLDER              hex; likewise
    RAY_MONO_WORKER_DYNAMIC_OPTION_PLACEHOLDER  an argument of its own: replaced by any number of options

Example: `java -Dport=RAY_MONO_NODE_MANAGER_PORT_PLACEHOLDER RAY_MONO_WORKER_DYNAMIC_OPTION_PLACEHOLDER
ray.Worker`.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

NODE_MANAGER_PORT = "RAY_MONO_NODE_MANAGER_PORT_PLACEHOLDER"
STARTUP_TOKEN = "RAY_MONO_STARTUP_TOKEN_PLACEHOLDER"
WORKER_ID = "RAY_MONO_WORKER_ID_PLACEHOLDER"
DYNAMIC_OPTION = "RAY_MONO_WORKER_DYNAMIC_OPTION_PLACEHOLDER"


def worker_command(
    command: str,
    node_manager_port: int,
    startup_token: int,
    worker_id: bytes,
    dynamic_options: Sequence[str] = (),
) -> list[str]:
    """The arguments to execute. `command` is split as a shell would. Raises ValueError where it is empty or
    its quotes do not close.
    """
    values = {
        NODE_MANAGER_PORT: str(node_manager_port),
        STARTUP_TOKEN: str(startup_token),
        WORKER_ID: worker_id.hex(),
    }
    arguments: list[str] = []
    for part in shlex.split(command):
        if part == DYNAMIC_OPTION:
            arguments += dynamic_options
            continue
        for placeholder, value in values.items():
            part = part.replace(placeholder, value)
        arguments.append(part)
    if not arguments:
        raise ValueError("a worker command must name a program, got nothing")
    return arguments
