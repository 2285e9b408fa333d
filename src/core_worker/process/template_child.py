"""How a process becomes a worker, as its template was told: in a fork of the template, or in an interpreter
of its own.

    template ──fork──────────────────────────────────────► become_worker
    template ──start_interpreter──► python -m (this) ──► main ──► become_worker

An interpreter gets its order in its environment, which other users cannot read, and takes it out there.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import NoReturn

from ray_mono.common import process
from ray_mono.common.lifeline import LIFELINE_SUFFIX, depend_on
from ray_mono.core_worker.process.worker_config import WorkerConfig
from ray_mono.protobuf import raylet_pb2

Hook = Callable[[WorkerConfig], object]
Fork = raylet_pb2.TemplateCommand.Fork

ORDER_VARIABLE = "RAY_MONO_WORKER_ORDER"
IDLE_TITLE = "ray_mono::IDLE"


@dataclass(frozen=True)
class Node:
    """What all workers of one template have in common."""

    raylet_socket: str
    gcs_address: str
    session_dir: str
    node_host: str
    log_level: str
    worker_module: str
    """MODULE:FUNCTION; the function is called with the WorkerConfig."""


def load_hook(name: str) -> Hook:
    """The function that "module:function" names. Raises ImportError, AttributeError, and ValueError for a
    name of another form."""
    module_name, separator, function_name = name.partition(":")
    if not separator:
        raise ValueError(f"--worker-module takes MODULE:FUNCTION, got {name!r}")
    hook: Hook = getattr(importlib.import_module(module_name), function_name)
    return hook


def start_interpreter(node: Node, fork: Fork) -> int:
    """Starts an interpreter that becomes the worker, and returns its pid. Raises OSError, and ValueError for
    variables that no environment can have."""
    order = {
        "node": asdict(node),
        "fork": base64.b64encode(fork.SerializeToString()).decode(),
        "parent": os.getpid(),
    }
    command = process.module_command(__name__)
    # posix_spawn, since this process has threads: no Python may run between a fork and an exec then.
    return os.posix_spawn(
        command[0],
        command,
        {**os.environ, ORDER_VARIABLE: json.dumps(order)},
        setpgroup=0,
        setsigmask=(),
        setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGCHLD),
    )


def become_worker(node: Node, fork: Fork, template_pid: int, load: Callable[[], Hook]) -> NoReturn:
    """Makes this a process of its own, runs the worker, and ends the process, whatever happens.

    load: gives the hook; it is called in the worker's environment.
    """
    code = 1
    try:
        os.setpgid(0, 0)
        if not depend_on(node.raylet_socket + LIFELINE_SUFFIX):
            process.set_pdeathsig(signal.SIGKILL, template_pid)
        config = _prepare(node, fork)
        load()(config)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _prepare(node: Node, fork: Fork) -> WorkerConfig:
    _open_own_files(os.path.join(node.session_dir, fork.log_prefix))
    set_title(IDLE_TITLE)
    gc.enable()
    return WorkerConfig(
        raylet_socket=node.raylet_socket,
        gcs_address=node.gcs_address,
        session_dir=node.session_dir,
        worker_id=fork.worker_id,
        startup_token=fork.startup_token,
        log_level=node.log_level,
        node_host=node.node_host,
    )


def _open_own_files(log_prefix: str) -> None:
    """Output goes to <log_prefix>-<pid>.out and .err. There is no input."""
    _open_as(0, os.devnull, os.O_RDONLY)
    pid = os.getpid()
    for descriptor, suffix in ((1, "out"), (2, "err")):
        _open_as(descriptor, f"{log_prefix}-{pid}.{suffix}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def _open_as(descriptor: int, path: str, flags: int) -> None:
    """Opens a file as this descriptor. A file object would cost each child 0.1 MB of pages (measured)."""
    opened = os.open(path, flags | os.O_CLOEXEC, 0o600)
    os.dup2(opened, descriptor)
    os.close(opened)


def prepare_output() -> None:
    """Sets standard output and error up as workers have them. Their files are read as UTF-8, whatever the
    locale is, and line by line. Forks inherit this from the template.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(  # type: ignore[union-attr]
            encoding="utf-8", errors="backslashreplace", line_buffering=True
        )


def set_title(title: str) -> None:
    import setproctitle

    setproctitle.setproctitle(title)


def main() -> NoReturn:
    """Becomes a worker for a template that may not fork. Takes the order out of the environment."""
    order = json.loads(os.environ.pop(ORDER_VARIABLE))
    prepare_output()
    node = Node(**order["node"])
    fork = Fork.FromString(base64.b64decode(order["fork"]))
    become_worker(node, fork, order["parent"], lambda: load_hook(node.worker_module))


if __name__ == "__main__":
    main()
