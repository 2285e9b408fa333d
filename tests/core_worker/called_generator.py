"""A generator that a worker runs for a scene's process: its caller's side, and what the worker says."""

from __future__ import annotations

from typing import Any

from ray_mono.common.ids import object_id_bytes
from ray_mono.core_worker.options import STREAMING_RETURNS
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import core_worker_pb2
from tests.core_worker.scene import ELSEWHERE, Reply, Said, Scene, failure, references_inside

END = Reply()
OTHER_NODE = b"o" * 28


def item(value: Any) -> core_worker_pb2.StreamedItem:
    """None is one in the store of ELSEWHERE."""
    if value is None:
        return core_worker_pb2.StreamedItem(in_plasma=True, node_id=ELSEWHERE, size_bytes=10**6)
    serialized = serialization.serialize(value)
    return core_worker_pb2.StreamedItem(
        metadata=serialized.metadata, data=serialized.to_bytes(), nested=references_inside(serialized)
    )


def part(first: int, *values: Any, wants: bool = False) -> core_worker_pb2.PushTaskReply:
    return Reply(first_item=first, items=[item(value) for value in values], wants_acknowledgement=wants)


class Generator:
    """One that a worker runs for this process."""

    def __init__(
        self,
        num_returns: int = STREAMING_RETURNS,
        backpressure: int = 0,
        retry_exceptions: bool = False,
        **options: Any,
    ) -> None:
        self.scene = Scene()
        template = self.scene.template(
            "g",
            num_returns=num_returns,
            generator_backpressure_num_objects=backpressure,
            retry_exceptions=retry_exceptions,
            **options,
        )
        (self.made,) = self.scene.core.submit_task(template, [])
        self.scene.grant()
        self.task_id: bytes = self.push.request.task_id

    @property
    def push(self) -> Said:
        return self.scene.wire.last("PushTask")

    def item_id(self, number: int) -> bytes:
        return object_id_bytes(self.task_id, number + 1)

    def fail(self, error: BaseException) -> None:
        """This attempt raised it."""
        self.push.answer(failure(error, object_id_bytes(self.task_id, 1)))

    @property
    def told(self) -> list[tuple[int, int, bool]]:
        """What the executor heard: (received, taken, dropped)."""
        said = self.scene.wire.all("AcknowledgeItems", "unix:worker")
        assert all(each.request.task_id == self.task_id for each in said)
        return [(each.request.received, each.request.taken, each.request.is_dropped) for each in said]

    @property
    def freed(self) -> list[tuple[bytes, list[bytes]]]:
        self.scene.turn()
        return [
            (each.object_id, list(each.location_node_ids))
            for said in self.scene.wire.all("Free")
            for each in said.request.objects
        ]

    @property
    def references(self) -> int:
        return self.scene.core.reference_counts()
