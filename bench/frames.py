"""Which functions one small call enters on the thread that makes it, and in how many files they lie: how far
its reader has to walk.

    python bench/frames.py [--verbose]

Each call is made on a lease that is warm, after a few of its kind; counted are Python frames of ray_mono. A
call varies (an answer may come while it is made), so what is told is the median of CALLS calls. --verbose
names the functions of the median call, in their order.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.append(str(Path(__file__).absolute().parent.parent / "python"))

import ray_mono as ray

CALLS = 51
WARM_UP_CALLS = 100


class Walk:
    """The frames of ray_mono that one call of a function entered, in their order, as (file, function)."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.frames: list[tuple[str, str]] = []
        sys.setprofile(self._note)
        try:
            self.value = function()
        finally:
            sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, arg: Any) -> None:
        if event == "call" and frame.f_globals.get("__name__", "").startswith("ray_mono"):
            self.frames.append((frame.f_code.co_filename, frame.f_code.co_qualname))

    @property
    def num_files(self) -> int:
        return len({file for file, _ in self.frames})

    @property
    def num_moves(self) -> int:
        """How often the next function lies in another file."""
        return sum(left[0] != right[0] for left, right in zip(self.frames, self.frames[1:], strict=False))


def median(walks: list[Walk]) -> Walk:
    """By the number of frames."""
    return sorted(walks, key=lambda walk: len(walk.frames))[len(walks) // 2]


def measure(step: str, make: Callable[[], Any]) -> dict[str, Walk]:
    """The median of this step, which makes a reference, and the median get of its value."""
    for _ in range(WARM_UP_CALLS):
        ray.get(make())
    made, gets = [], []
    for _ in range(CALLS):
        made.append(Walk(make))
        gets.append(Walk(lambda: ray.get(made[-1].value)))
        made[-1].value = None  # as a program lets it go: before its next call
    return {step: median(made), "get": median(gets)}


def main() -> None:
    """Measures a task, an actor's method and an item of a generator on a cluster of its own, and prints a
    line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--verbose", action="store_true", help="name the functions")
    verbose = parser.parse_args().verbose

    @ray.remote
    def echo(value: int) -> int:
        return value

    @ray.remote
    class Echo:
        def call(self, value: int) -> int:
            return value

    @ray.remote(num_returns="streaming")
    def count() -> Iterator[int]:
        yield from range(WARM_UP_CALLS + CALLS)

    ray.init(address="local", num_cpus=2)
    actor, items = Echo.remote(), count.remote()
    for name, step, make in (
        ("task", "remote", lambda: echo.remote(1)),
        ("actor call", "remote", lambda: actor.call.remote(1)),
        ("streamed item", "next", lambda: next(items)),
    ):
        for each, walk in measure(step, make).items():
            print(
                f"{name}, {each}: {len(walk.frames)} functions in {walk.num_files} files,"
                f" {walk.num_moves} moves between files"
            )
            for file, function in walk.frames if verbose else ():
                print(f"    {Path(file).stem}.{function}")
    ray.shutdown()


if __name__ == "__main__":
    main()
