"""`ray`, the command line, for what a program under `ray_mono.compat` starts.

It lies in a folder of its own on the program's PATH, which goes when the program ends.
"""

from __future__ import annotations

import atexit
import copy
import os
import shlex
import shutil
import tempfile

from ray_mono.common.process import INTERPRETER


def program(api_version: str) -> str:
    """What Python runs as `ray`."""
    return f"from ray_mono._private.compat import ray_command; ray_command.main({api_version!r})"


def put_on_path(api_version: str) -> None:
    """Makes `ray` mean `ray-mono`, before any other `ray` on the PATH."""
    folder = tempfile.mkdtemp(prefix="ray_mono_bin_")
    creator = os.getpid()

    def remove() -> None:
        if os.getpid() == creator:  # not in a fork
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    path = os.path.join(folder, "ray")
    with open(path, "w") as file:
        file.write(
            f'#!/bin/sh\nexec {shlex.quote(INTERPRETER)} -P -c {shlex.quote(program(api_version))} "$@"\n'
        )
    os.chmod(path, 0o700)
    os.environ["PATH"] = folder + os.pathsep + os.environ.get("PATH", os.defpath)


def main(api_version: str) -> None:
    """Runs the command line, which honours Ray's environment variables too.

    api_version: the version of Ray that the command line says it is.
    """
    import click

    from ray_mono._private.compat import ray_environment
    from ray_mono.scripts import scripts

    ray_environment.take_over()
    command = copy.copy(scripts.cli)
    command.commands = {**command.commands, "health-check": scripts.healthcheck}
    command.params = [option for option in command.params if option.name != "version"]
    show_version = click.version_option(
        api_version, prog_name="ray", message="%(prog)s, version %(version)s (ray_mono)"
    )
    scripts.main("ray", show_version(command))
