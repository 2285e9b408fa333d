"""What simulated tasks do: a script. A task carries its number, so that its push is short, as most are."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Protocol

from ray_mono.common.scheduling.resources import ResourceSet

CHILD_RESOURCES = ResourceSet.from_units({"CPU": 1})
"""Of tasks that tasks submit: what a worker that waits gives back, so that no cluster is too small for them.
"""
CHILD_RETRIES = 4


SEED_BYTES = 8
"""What a filler begins with; the rest of it follows from that."""


def filler(name: str, size_bytes: int) -> bytes:
    """What makes a value large. No two names have the same, nor two places in one."""
    return _filler_of(random.Random(name).randbytes(SEED_BYTES), size_bytes)


def is_filler(content: bytes) -> bool:
    """Whether every byte is where it was made."""
    return content == _filler_of(content[:SEED_BYTES], len(content))


def _filler_of(seed: bytes, size_bytes: int) -> bytes:
    return seed + random.Random(seed).randbytes(max(0, size_bytes - len(seed)))


class Script(Protocol):
    """What every kind of task says of itself."""

    @property
    def name(self) -> str: ...

    @property
    def cancelled_after_s(self) -> float: ...

    @property
    def is_cancelled_by_force(self) -> bool: ...


class Scripts:
    """Those of one run, by their numbers."""

    def __init__(self) -> None:
        self.gates_are_open = False
        """What tasks wait for that run until somebody lets them end."""
        self._numbers: dict[Any, int] = {}
        self._scripts: list[Any] = []

    def number_of(self, script: Any) -> int:
        """The same for equal scripts."""
        number = self._numbers.setdefault(script, len(self._scripts))
        if number == len(self._scripts):
            self._scripts.append(script)
        return number

    def __getitem__(self, number: int) -> Any:
        return self._scripts[number]


@dataclass(frozen=True)
class TaskScript:
    """What a simulated task does, in virtual seconds: compute, wait in `get` for a while and for the tasks
    that it submitted, compute again. Or kill its worker.
    """

    compute_s: float = 0.01
    wait_s: float = 0.0
    compute_again_s: float = 0.0
    max_retries: int | None = None
    """None: as many as the scenario says."""
    max_calls: int = 0
    """After so many calls with these options the worker ends; 0: never."""
    num_returns: int = 1
    dies_in_attempts: int = 0
    """The worker of the first so many attempts dies after compute_s."""
    num_children: int = 0
    """Tasks that it submits and waits for. Its worker owns them."""
    levels: int = 1
    """How deep children have children in turn."""
    keeps_s: float = 0.0
    """So long its worker owns an object after the task: a `put` whose reference went out with the result."""
    cancelled_after_s: float = -1.0
    """Its owner cancels it so long after it was submitted; negative: never."""
    is_cancelled_by_force: bool = False
    """With `force` and `recursive`."""

    @property
    def name(self) -> str:
        return "simulated"

    @property
    def child(self) -> TaskScript:
        """What its children do."""
        num_children = self.num_children if self.levels > 1 else 0
        return TaskScript(
            self.compute_s, num_children=num_children, levels=self.levels - 1, keeps_s=self.keeps_s
        )
