"""get of more missing values than it has itself told of at a time."""

from __future__ import annotations

import threading

import pytest

import ray_mono as ray
from ray_mono.core_worker.objects import getter
from ray_mono.exceptions import GetTimeoutError

pytestmark = pytest.mark.usefixtures("leaves_nothing")
FEW = 4
MANY = 3 * FEW + 1


@pytest.fixture(autouse=True)
def told_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getter, "WATCHED_MAX", FEW)


@ray.remote(num_cpus=0, max_concurrency=MANY + 1)
class Gate:
    def __init__(self) -> None:
        self._is_open = threading.Event()

    def open(self) -> None:
        self._is_open.set()

    def pass_through(self, number: int) -> int:
        self._is_open.wait(60)
        return number


def test_it_gets_them_all_in_order() -> None:
    gate = Gate.remote()
    refs = [gate.pass_through.remote(number) for number in range(MANY)]
    got: list[int] = []
    waiting = threading.Thread(target=lambda: got.extend(ray.get(refs)))
    waiting.start()
    ray.get(gate.open.remote())
    waiting.join(60)
    assert got == list(range(MANY))


def test_a_timeout_counts_all_that_were_missing() -> None:
    gate = Gate.remote()
    there = [ray.put(number) for number in range(FEW)]
    missing = [gate.pass_through.remote(number) for number in range(MANY)]
    with pytest.raises(GetTimeoutError, match=f"{MANY} of {MANY + FEW} objects"):
        ray.get(there + missing, timeout=0.05)
    ray.get(gate.open.remote())
    assert ray.get(missing, timeout=60) == list(range(MANY))
