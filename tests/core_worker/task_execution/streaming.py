"""A worker that runs a generator, for tests of its items."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ray_mono.common.ids import object_id_bytes
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import core_worker_pb2
from tests.core_worker.worker_scene import Pushed, Worker

REFERENCE = b"r" * 28


class Streaming(Worker):
    """It runs one generator, whose items go to `call`. Time stands still, but for what a test lets pass."""

    call: Pushed

    def stream(
        self, make: Callable[..., Iterator[Any]], *args: Any, backpressure: int = 0, **fields: Any
    ) -> Pushed:
        spec = self.function(make, num_returns=-1, generator_backpressure_num_objects=backpressure, **fields)
        self.call = self.ask(spec, *args)
        return self.call

    def acknowledge(self, received: int = 0, taken: int = 0, is_dropped: bool = False) -> None:
        """The owner says so."""
        request = core_worker_pb2.AcknowledgeItemsRequest(
            task_id=self.call.task_id, received=received, taken=taken, is_dropped=is_dropped
        )
        with self.env.lock:
            self.execution.generators.AcknowledgeItems(request)

    def item_id(self, number: int) -> bytes:
        return object_id_bytes(self.call.task_id, number + 1)

    @property
    def on_board(self) -> list[tuple[int, list[Any]]]:
        """What its raylet would find if it died now: the numbers of first items, and the items."""
        kept = [core_worker_pb2.PushTaskReply.FromString(each) for _, each in self.as_raylet().kept_calls()]
        return [
            (part.first_item, [serialization.deserialize(item.metadata, item.data) for item in part.items])
            for part in kept
        ]

    @property
    def numbers(self) -> list[int]:
        """Of the items that were sent, as their parts count them."""
        return [part.first_item + index for part in self.call.parts for index in range(len(part.items))]


def still(values: Any) -> Callable[[], Iterator[Any]]:
    """A generator of these."""

    def generate() -> Iterator[Any]:
        yield from values

    return generate
