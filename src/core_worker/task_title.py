"""What people see of the task that a worker runs: its process's title, and the labels that the log monitor reads."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from setproctitle import setproctitle

from ray_mono.core_worker.task_failure import TITLE
from ray_mono.protobuf import common_pb2


class TaskTitle:
    """Of one worker. Written where it changes."""

    def __init__(self) -> None:
        self._label = ""
        # It names no task: as the template left it, or a while after the last one.
        self.is_idle = True

    def show(self, spec: Any) -> None:
        """A task, or an actor's creation, begins; its calls change nothing."""
        if spec.type == common_pb2.ACTOR_TASK:
            return
        kind, name = "task", spec.name
        if spec.type == common_pb2.ACTOR_CREATION_TASK:
            kind, name = "actor", spec.name.removesuffix(".__init__")
        label = f":{kind}_name:{name}"
        if self.is_idle or label != self._label:
            self.is_idle = False
            setproctitle(TITLE + name)
        if label != self._label:
            self._label = label
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):  # user code may have closed it
                    print(label, file=stream, flush=True)

    def show_idle(self) -> None:
        """No task came for a while."""
        self.is_idle = True
        setproctitle(f"{TITLE}IDLE")
