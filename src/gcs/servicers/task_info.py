"""TaskInfoGcsService: what workers ran, for the timeline."""

from __future__ import annotations

from ray_mono.common.world import Clock
from ray_mono.gcs.pubsub.collections import Collections
from ray_mono.gcs.task_event_log import TaskEventLog
from ray_mono.protobuf import common_pb2, gcs_pb2, gcs_rpc
from ray_mono.rpc.surface import CallContext


class TaskInfoServicer(gcs_rpc.GcsServiceServicer):
    """Workers' events, and who asks for them."""

    def __init__(self, task_events: TaskEventLog, collections: Collections, clock: Clock) -> None:
        self._clock = clock
        self._task_events = task_events
        self._collections = collections

    async def AddTaskEvents(self, request: gcs_pb2.TaskEvents, context: CallContext) -> common_pb2.Empty:
        self._task_events.add(request, self._clock.wall_s())
        self._collections.answered(request.collection, context.connection)
        return common_pb2.Empty()

    async def GetTaskEvents(
        self, request: gcs_pb2.GetTaskEventsRequest, context: CallContext
    ) -> gcs_pb2.GetTaskEventsReply:
        if request.collect:
            await self._collections.collect(gcs_pb2.COLLECT_EVENTS)
        return gcs_pb2.GetTaskEventsReply(
            batches=self._task_events.of_job(request.job_id), dropped=self._task_events.dropped
        )
