"""What `explain` says of something that waits, as the tables of stuck programs expect it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray_mono as ray
from ray_mono.common.explanation import Explanation, Outlook
from tests.integration.clusters import run_command
from tests.waiting import wait_until

MOVES, OPEN, STUCK = Outlook.MOVES, Outlook.OPEN, Outlook.STUCK
ENDED = ("ACTOR_DEAD", "PLACEMENT_GROUP_REMOVED")
"""Nothing unblocks these."""


KEPT: list[Any] = []
"""What programs leave behind: it goes on while something refers to it."""


@contextmanager
def one_node(num_cpus: int = 2, **options: Any) -> Iterator[None]:
    """A session, and what is kept of it."""
    ray.init(address="local", num_cpus=num_cpus, log_to_driver=False, **options)
    yield
    ray.shutdown()
    KEPT.clear()


@contextmanager
def first_node(**options: Any) -> Iterator[str]:
    """A cluster whose nodes end with the test, and its driver: the head's address."""
    context = ray.init(address="local", num_cpus=2, log_to_driver=False, **options)
    try:
        yield context.address_info["gcs_address"]
    finally:
        ray.shutdown()
        assert run_command("stop").status == 0


def expect_program_explained(program: Callable[[], Any], *expected: Any) -> None:
    """What the program returns, which is kept. expected: as of expect_explained."""
    waits = program()
    KEPT.append(waits)
    expect_explained(waits, *expected)


def expect_explained(waits: Any, code: str, outlook: Outlook, words: tuple[str, ...]) -> Explanation:
    """Waits until it is explained so, with these words; and looks at what each explanation has to be."""
    told = []

    def is_told() -> bool:
        told.append(ray.explain(waits))
        is_as_expected = (told[-1].code, told[-1].outlook) == (code, outlook)
        return is_as_expected and all(word in str(told[-1]) for word in words)

    try:
        wait_until(is_told, f"{code} with {words}")
    except AssertionError as error:
        raise AssertionError(f"{error}: {told[-1]}") from None
    explanation = told[-1]
    text = str(explanation)
    assert text.endswith(".") and ".." not in text and "\n" not in text
    assert bool(explanation.cycle) == (code == "DEADLOCK")
    assert explanation.to_dict()["code"] == code
    assert explanation.unblock or outlook is not STUCK or code in ENDED
    return explanation
