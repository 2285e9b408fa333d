"""What a head keeps of what is over: its memory and its file, after each tenth of a long life.

    python bench/head_growth.py [--tasks N] [--actors N] [--drivers N] [--storage-path FILE]

A real gcs_server with its file. One node, played here, grants every lease and creates every actor. One driver
after the other registers, exports functions, has its actors created and ended, and its workers report what
they ran; then it ends. The events of 1,000,000 tasks, 10,000 actors and 1,000 drivers by default.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).absolute().parent.parent / "python"))

import psutil

from ray_mono.common.ids import ActorID, JobID, NodeID, TaskID, WorkerID
from ray_mono.protobuf import (
    common_pb2,
    core_worker_pb2,
    core_worker_rpc,
    gcs_pb2,
    gcs_rpc,
    raylet_pb2,
    raylet_rpc,
)
from ray_mono.rpc.framed import FramedTransport
from ray_mono.rpc.surface import CallContext

TENTHS = 10
EVENTS_IN_BATCH = 100
FUNCTIONS_OF_JOB = 3
FUNCTION_BYTES = 2000
ARGUMENTS_BYTES = 500
CONNECT_TIMEOUT_S = 10.0
EMPTY = common_pb2.Empty()
# Nobody else is to reach it: it listens on loopback for as long as this runs.
SECRET = os.urandom(16).hex()


@dataclass(frozen=True)
class Size:
    """Of one life, or of a part of it."""

    tasks: int
    actors: int
    drivers: int


class Node(raylet_rpc.RayletServiceServicer):
    """A raylet that grants what it is asked for. Its workers create at once what they are told to."""

    def __init__(self) -> None:
        self.node_id = NodeID(os.urandom(NodeID.SIZE)).binary()
        self.host, self.port = "127.0.0.1", 0

    async def RequestWorkerLease(
        self, request: raylet_pb2.RequestWorkerLeaseRequest, context: CallContext
    ) -> raylet_pb2.RequestWorkerLeaseReply:
        worker = self.address(os.urandom(WorkerID.SIZE))
        return raylet_pb2.RequestWorkerLeaseReply(
            grant=raylet_pb2.Grant(lease_id=request.lease_id, worker=worker, worker_pid=1)
        )

    async def CheckAlive(self, request: common_pb2.Empty, context: CallContext) -> common_pb2.Empty:
        return EMPTY

    async def KillWorker(
        self, request: raylet_pb2.KillWorkerRequest, context: CallContext
    ) -> common_pb2.Empty:
        return EMPTY

    def address(self, worker_id: bytes) -> common_pb2.Address:
        return common_pb2.Address(node_id=self.node_id, worker_id=worker_id, host=self.host, port=self.port)


class Workers(core_worker_rpc.CoreWorkerServiceServicer):
    """All workers of the node, at its address."""

    async def PushTask(
        self, request: core_worker_pb2.PushTaskRequest, context: CallContext
    ) -> core_worker_pb2.PushTaskReply:
        return core_worker_pb2.PushTaskReply(status=core_worker_pb2.PushTaskReply.DONE)

    async def Exit(self, request: core_worker_pb2.ExitRequest, context: CallContext) -> common_pb2.Empty:
        return EMPTY


async def live(gcs: gcs_rpc.GcsServiceAsyncStub, node: Node, part: Size) -> None:
    """One driver after the other."""
    for _ in range(part.drivers):
        driver = node.address(os.urandom(WorkerID.SIZE))
        await gcs.AddWorker(common_pb2.WorkerInfo(worker_id=driver.worker_id, node_id=node.node_id))
        job = common_pb2.JobInfo(driver=driver, entrypoint="python a_program.py --with arguments")
        job_id = (await gcs.AddJob(gcs_pb2.AddJobRequest(job=job))).job_id
        for number in range(FUNCTIONS_OF_JOB):
            key, value = job_id + b"function %d" % number, os.urandom(FUNCTION_BYTES)
            await gcs.KvPut(gcs_pb2.KvPutRequest(namespace=b"fun", key=key, value=value))
        for _ in range(part.actors // part.drivers):
            await live_as_actor(gcs, node, JobID(job_id), driver)
        for _ in range(part.tasks // part.drivers // EVENTS_IN_BATCH):
            await gcs.AddTaskEvents(events(node, job_id))
        await gcs.MarkJobFinished(gcs_pb2.MarkJobFinishedRequest(job_id=job_id))
        await gcs.ReportWorkerDeath(death(driver.worker_id, node))


async def live_as_actor(
    gcs: gcs_rpc.GcsServiceAsyncStub, node: Node, job_id: JobID, driver: common_pb2.Address
) -> None:
    """Registered, created, out of scope, ended."""
    actor_id = os.urandom(ActorID.SIZE - JobID.SIZE) + job_id.binary()
    spec = common_pb2.TaskSpec(
        type=common_pb2.ACTOR_CREATION_TASK,
        name="Counter.__init__",
        job_id=job_id.binary(),
        caller=driver,
        flat_args=bytes(ARGUMENTS_BYTES),
        actor_creation=common_pb2.ActorCreationSpec(actor_id=actor_id, serialized_handle=bytes(300)),
    )
    await gcs.RegisterActor(gcs_pb2.RegisterActorRequest(creation_spec=spec, class_name="Counter"))
    info = common_pb2.ActorInfo()
    while info.state != common_pb2.ALIVE:
        info = await gcs.WatchActor(gcs_pb2.WatchActorRequest(actor_id=actor_id, after_version=info.version))
    worker_id = info.address.worker_id
    await gcs.AddWorker(common_pb2.WorkerInfo(worker_id=worker_id, node_id=node.node_id))
    await gcs.ActorOutOfScope(gcs_pb2.ActorOutOfScopeRequest(actor_id=actor_id))
    await gcs.ReportWorkerDeath(death(worker_id, node))


def death(worker_id: bytes, node: Node) -> common_pb2.WorkerInfo:
    cause = common_pb2.DeathCause(kind=common_pb2.DeathCause.WORKER_DIED, message="exit status 0")
    return common_pb2.WorkerInfo(worker_id=worker_id, node_id=node.node_id, death_cause=cause)


def events(node: Node, job_id: bytes) -> gcs_pb2.TaskEvents:
    now_s = time.time()
    return gcs_pb2.TaskEvents(
        job_id=job_id,
        worker_id=os.urandom(WorkerID.SIZE),
        node_id=node.node_id,
        host=node.host,
        pid=1,
        names=["a_function"],
        name_indices=[0] * EVENTS_IN_BATCH,
        start_time_s=[now_s] * EVENTS_IN_BATCH,
        end_time_s=[now_s] * EVENTS_IN_BATCH,
        task_ids=os.urandom(TaskID.SIZE * EVENTS_IN_BATCH),
    )


@contextmanager
def head(storage_path: str, log_path: str) -> Iterator[tuple[str, int]]:
    """A gcs_server's address and pid."""
    ready, ready_in_child = os.pipe()
    path = os.pathsep.join(entry for entry in sys.path if entry)
    with open(log_path, "w") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray_mono.gcs.gcs_server", f"--ready-fd={ready_in_child}"),
                *(f"--storage-path={storage_path}", "--log-level=error"),
            ],
            pass_fds=(ready_in_child,),
            stderr=log,
            env={**os.environ, "PYTHONPATH": path, "RAY_MONO_AUTH_TOKEN": SECRET},
        )
    os.close(ready_in_child)
    try:
        with open(ready) as file:
            line = file.readline()
        if not line:
            raise SystemExit(f"the head did not start: {Path(log_path).read_text()}")
        yield json.loads(line)["address"], process.pid
    finally:
        process.terminate()
        process.wait()


def row(pid: int, storage_path: str) -> tuple[float, float]:
    """MB of the head's memory, and of its files."""
    size = sum(path.stat().st_size for path in Path(storage_path).parent.glob(Path(storage_path).name + "*"))
    return psutil.Process(pid).memory_info().rss / 1e6, size / 1e6


async def measure(size: Size, storage_path: str, log_path: str) -> list[tuple[float, float]]:
    """Prints, and returns, the row of each tenth."""
    rows = []
    with head(storage_path, log_path) as (address, pid):
        transport = FramedTransport(SECRET)
        node = Node()
        handlers = {
            **core_worker_rpc.core_worker_service_handlers(Workers()),
            **raylet_rpc.raylet_service_handlers(node),
        }
        listener = await transport.serve(f"{node.host}:0", handlers)
        node.port = int(listener.address.rpartition(":")[2])
        channel = await transport.connect(address, CONNECT_TIMEOUT_S)
        gcs = gcs_rpc.GcsServiceAsyncStub(channel)
        info = common_pb2.NodeInfo(node_id=node.node_id, host=node.host, node_manager_port=node.port)
        await gcs.RegisterNode(gcs_pb2.RegisterNodeRequest(node=info))
        print(f"{'tasks':>10} {'actors':>8} {'drivers':>8} {'memory, MB':>12} {'file, MB':>10} {'s':>8}")
        part = Size(size.tasks // TENTHS, size.actors // TENTHS, size.drivers // TENTHS)
        start_s = time.monotonic()
        for tenth in range(1, TENTHS + 1):
            await live(gcs, node, part)
            rows.append(row(pid, storage_path))
            print(
                f"{part.tasks * tenth:>10} {part.actors * tenth:>8} {part.drivers * tenth:>8}"
                f" {rows[-1][0]:>12.1f} {rows[-1][1]:>10.2f} {time.monotonic() - start_s:>8.1f}",
                flush=True,
            )
        channel.close()
        await listener.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="What a head keeps of what is over.")
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--actors", type=int, default=10_000)
    parser.add_argument("--drivers", type=int, default=1_000)
    parser.add_argument("--storage-path", help="[default: a file that is removed at the end]")
    options = parser.parse_args()
    size = Size(options.tasks, options.actors, options.drivers)
    with tempfile.TemporaryDirectory() as directory:
        path = options.storage_path or f"{directory}/gcs.sqlite"
        asyncio.run(measure(size, path, f"{directory}/log"))


if __name__ == "__main__":
    main()
