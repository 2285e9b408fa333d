"""Ends processes of a cluster of several nodes, one after another, as nobody wants it: kill -9, kill -STOP;
and some of their connections.

The node of the driver keeps its raylet, its object manager and its reaper, since a driver ends with these.
All else dies. What a node has lost as a whole is started again.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from ray_mono._private.node.session import NodeRecord
from tests.integration.clusters import CommandLineCluster, runs
from tests.integration.connections import end_one_connection
from tests.integration.titles import title_of

STOPPED_S = (0.5, 6.0)
ENDS_WITHIN_S = 90.0
"""All processes of a node, when one ended without which there is no node."""
POLL_S = 0.05


class LeftBehind(AssertionError):
    """Processes or files of a node that ended."""


@dataclass(frozen=True)
class Member:
    """A node that may be lost, and all processes that were seen of it."""

    record: NodeRecord
    reaper: psutil.Process

    def processes(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return [self.reaper, *self.reaper.children(recursive=True)]
        return []


class Breaker:
    """Of one cluster. add_node() starts a node. only: parts of the names of what is done, with commas
    between; empty: all of it."""

    def __init__(
        self,
        cluster: CommandLineCluster,
        add_node: Callable[[], NodeRecord],
        num_nodes: int,
        seed: str,
        only: str = "",
    ) -> None:
        self.done: Counter[str] = Counter()
        self._cluster = cluster
        self._add_node = add_node
        self._rng = random.Random(seed)
        self._head = self._member(cluster.head)
        self._members = [self._member(add_node()) for _ in range(num_nodes)]
        ways = {
            "a worker is killed": lambda: self._kill_one_of_any("ray_mono::"),
            "a worker is stopped for a while": lambda: self._stop_one_of_any("ray_mono::"),
            "a connection is ended": self._end_a_connection,
            "a template is killed": lambda: self._kill_one_of_any("ray_mono::TEMPLATE"),
            "a log monitor is killed": lambda: self._kill_one_of_any("log_monitor"),
            "the head is killed": lambda: self._kill(self._find(self._head, "gcs_server")),
            "the head is stopped for a while": lambda: self._stop([*self._find(self._head, "gcs_server")]),
            "a raylet is killed": lambda: self._lose_node("ray_mono.raylet"),
            "an object manager is killed": lambda: self._lose_node("object_manager"),
            "a reaper is killed": lambda: self._lose_node("node.reaper"),
            "a node is killed": lambda: self._lose_node(""),
            "a node is stopped for a while": self._stop_a_node,
        }
        self._ways = {
            name: way for name, way in ways.items() if any(part in name for part in only.split(","))
        }

    def break_something(self) -> str:
        """What it was. Raises LeftBehind."""
        way = self._rng.choice(list(self._ways))
        self._ways[way]()
        self.done[way] += 1
        return way

    def _member(self, record: NodeRecord) -> Member:
        return Member(record, psutil.Process(record.reaper_pid))

    def _find(self, member: Member, title: str) -> list[psutil.Process]:
        return [process for process in member.processes() if title in title_of(process)]

    def _one_of_any(self, title: str) -> list[psutil.Process]:
        """Of any node; workers do not count as templates, nor the reverse."""
        found = self._find(self._rng.choice([self._head, *self._members]), title)
        if title == "ray_mono::":
            found = [process for process in found if "TEMPLATE" not in title_of(process)]
        return [self._rng.choice(found)] if found else []

    def _kill_one_of_any(self, title: str) -> None:
        self._kill(self._one_of_any(title))

    def _stop_one_of_any(self, title: str) -> None:
        self._stop(self._one_of_any(title))

    def _kill(self, processes: list[psutil.Process]) -> None:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def _stop(self, processes: list[psutil.Process]) -> None:
        for sent in (signal.SIGSTOP, signal.SIGCONT):
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(sent)
            if sent is signal.SIGSTOP:
                time.sleep(self._rng.uniform(*STOPPED_S))

    def _end_a_connection(self) -> None:
        """One of a worker, or of the head. Services of a node that lose each other end with it."""
        heads = self._find(self._head, "gcs_server")
        for process in self._rng.choice([self._one_of_any("ray_mono::"), heads]):
            with contextlib.suppress(PermissionError, ProcessLookupError, FileNotFoundError):
                end_one_connection(process.pid, self._rng)

    def _stop_a_node(self) -> None:
        self._stop(self._rng.choice(self._members).processes())

    def _lose_node(self, title: str) -> None:
        """Kills those with the title, waits for the end of all others, and starts another node."""
        member = self._members.pop(self._rng.randrange(len(self._members)))
        processes = member.processes()
        self._kill([process for process in processes if title in title_of(process)])
        deadline_s = time.monotonic() + ENDS_WITHIN_S
        while left := [process for process in processes if runs(process)]:
            if time.monotonic() > deadline_s:
                told = [f"{process.pid} {title_of(process)[:150]}" for process in left]
                raise LeftBehind(
                    f"{ENDS_WITHIN_S:g} s after {title or 'all'} of a node was killed, there are: {told}"
                )
            time.sleep(POLL_S)
        self._members.append(self._member(self._add_node()))
        files = [path for path in member.record.owned_files if os.path.exists(path)]
        if files:
            raise LeftBehind(f"when the next node had started, a lost one had left {files}")
