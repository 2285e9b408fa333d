"""What a generator has yielded is not lost when its process dies: it was sent, or is on the board."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_mono.protobuf import common_pb2
from tests.core_worker.task_execution.streaming import REFERENCE, Streaming
from tests.core_worker.worker_scene import LARGE, OTHER_OWNER, Arriving


def test_what_was_yielded_and_not_sent_is_on_the_board(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Streaming(monkeypatch)
    seen: list[Any] = []

    def generate() -> Iterator[Any]:
        for item in ("sent", "a", "b" * 2000, ""):
            yield item
            seen.append(worker.on_board)
        worker.reactor.now_s += 2 * worker.config.part_flush_s
        yield "sent with all others"
        seen.append(worker.on_board)
        yield "c"
        seen.append(worker.on_board)

    call = worker.stream(generate)
    worker.run()
    long = "b" * 2000
    assert seen == [[], [(2, ["a"])], [(2, ["a", long])], [(2, ["a", long, ""])], [], [(6, ["c"])]]
    assert call.items == ["sent", "a", long, "", "sent with all others", "c"] and worker.on_board == []


def test_what_finds_no_room_on_the_board_is_sent_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Streaming(monkeypatch, part_items_max=10_000)
    lost: list[int] = []

    def generate() -> Iterator[Any]:
        for number in range(200):
            yield b"%1000d" % number
            kept = worker.on_board
            if len(worker.numbers) + sum(len(items) for _, items in kept) < number + 1:
                lost.append(number)

    worker.stream(generate)
    worker.run()
    assert not lost and worker.numbers == list(range(1, 201))


def test_an_item_behind_one_that_found_no_room_keeps_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Streaming(monkeypatch)
    worker.connection.has_unsent = True  # its owner does not read
    large = b"x" * 40_000
    seen: list[Any] = []

    def generate() -> Iterator[Any]:
        yield from ("sent", large, large, "small")
        seen.append(worker.on_board)

    worker.stream(generate)
    worker.run()
    assert seen == [[(2, [large]), (4, ["small"])]]


def test_items_behind_one_that_waited_for_its_references_keep_their_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Streaming(monkeypatch)
    worker.connection.has_unsent = True  # its owner does not read
    seen: list[Any] = []

    def generate(reference: Any) -> Iterator[Any]:
        yield 1
        yield 2
        yield [reference]
        seen.append(worker.on_board)
        with worker.env.lock:
            worker.wire.last("AddBorrower", "unix:other").answer(common_pb2.Empty())
        yield 4
        yield 5
        seen.append(worker.on_board)

    worker.stream(generate, Arriving(REFERENCE, OTHER_OWNER))
    worker.run()
    assert seen == [[(2, [2])], [(2, [2]), (4, [4, 5])]]


def test_a_large_item_does_not_wait_for_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    worker = Streaming(monkeypatch, store_file=tmp_path / "store")
    sent: list[int] = []

    def generate() -> Iterator[Any]:
        for item in (1, LARGE, LARGE, 2):
            yield item
            sent.append(len(worker.numbers))

    worker.stream(generate)
    worker.run()
    assert sent == [1, 2, 3, 3]
