"""What the outside sees of the task that a worker runs: the title of the process, and the labels that the log
monitor reads. It also sets how many threads the task's libraries may start."""

from __future__ import annotations

import contextlib
import sys

from setproctitle import setproctitle

from ray_mono.core_worker.task_errors import TITLE
from ray_mono.core_worker.task_execution.call import KnownSpec
from ray_mono.core_worker.task_execution.thread_limit import ThreadLimit
from ray_mono.protobuf import common_pb2

SHOWN_MAX = 500
"""At most so many characters of a name are shown. Readers of logs and titles want its beginning."""


def _on_one_line(name: str) -> str:
    """The name on one line, and without NUL, which no title may have."""
    return " ".join(name.replace("\0", " ").split())[:SHOWN_MAX]


class ProcessTitle:
    """The title of one worker. Only its main thread changes it."""

    def __init__(self) -> None:
        self._label = ""
        self.shown: KnownSpec | None = None
        """The specification that the title names. None before the first task, and a while after the last one.
        Calls that share a template have the same."""
        self._at_rest = "IDLE"
        self._threads = ThreadLimit()

    def show(self, spec: KnownSpec) -> None:
        """A task, an actor's creation or a call of an actor begins."""
        if spec is self.shown:
            return
        self.shown = spec
        if spec.type == common_pb2.ACTOR_TASK:
            setproctitle(TITLE + _on_one_line(spec.task_name or f"{self._at_rest}.{spec.name}"))
            return
        kind, name = "task", _on_one_line(spec.name)
        if spec.type == common_pb2.ACTOR_CREATION_TASK:
            kind, name = "actor", name.removesuffix(".__init__")
            self._at_rest = name
        setproctitle(TITLE + name)
        self._threads.show(spec.resources)
        self._write_label(kind, name)

    def name_actor(self, repr_name: str) -> None:
        """The actor is constructed. Its output goes by its repr where its class defines one."""
        self._write_label("actor", _on_one_line(repr_name))

    def _write_label(self, kind: str, name: str) -> None:
        label = f":{kind}_name:{name}"
        if label != self._label:
            self._label = label
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):  # user code may have closed it
                    print(label, file=stream, flush=True)

    def show_idle(self) -> None:
        """No task or call came for a while."""
        self.shown = None
        setproctitle(TITLE + self._at_rest)
