"""The real process: started by its command line, spoken to over sockets, killed and started again."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys

import pytest

from ray_mono.protobuf import common_pb2, gcs_pb2, gcs_rpc
from ray_mono.rpc.framed import FramedTransport
from ray_mono.rpc.surface import RpcError
from tests.gcs.conftest import RedisServer
from tests.gcs.gcs_process import MODULE, TIMEOUT_S, Start, talk
from tests.gcs.scene import JOB, actor_id, registration

EMPTY = common_pb2.Empty()


async def write_some(gcs: gcs_rpc.GcsServiceAsyncStub) -> None:
    await gcs.KvPut(gcs_pb2.KvPutRequest(namespace=b"ns", key=b"key", value=b"value"))
    assert (await gcs.AddJob(gcs_pb2.AddJobRequest())).job_id == JOB.binary()
    await gcs.RegisterActor(registration(name="named", is_detached=True))
    await gcs.RegisterActor(registration(2))


async def read_some(gcs: gcs_rpc.GcsServiceAsyncStub) -> None:
    assert (await gcs.KvGet(gcs_pb2.KvGetRequest(namespace=b"ns", key=b"key"))).value == b"value"
    assert (await gcs.AddJob(gcs_pb2.AddJobRequest())).job_id == b"\2\0\0\0"
    assert [job.job_id for job in (await gcs.GetAllJobs(EMPTY)).jobs] == [b"\1\0\0\0", b"\2\0\0\0"]
    named = await gcs.GetNamedActor(gcs_pb2.GetNamedActorRequest(name="named", namespace="space"))
    assert (named.actor_id, named.state, named.serialized_handle) == (
        actor_id(),
        common_pb2.PENDING_CREATION,
        b"the handle",
    )
    assert [actor.actor_id for actor in (await gcs.GetAllActors(EMPTY)).actors] == [actor_id(1), actor_id(2)]


@pytest.mark.parametrize("storage", ["file", "redis-embedded", "redis"])
def test_what_was_answered_is_there_after_sigkill_and_a_new_start(
    storage: str, start: Start, short_dir: str, request: pytest.FixtureRequest
) -> None:
    arguments, variables = {"file": [], "redis-embedded": ["--redis-embedded"]}.get(storage, []), {}
    if storage == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        arguments = ["--redis-address", server.address]
        variables = {"RAY_MONO_REDIS_PASSWORD": server.password}
    first = start(*arguments, **variables)
    heads = []

    async def remember_cluster(gcs: gcs_rpc.GcsServiceAsyncStub) -> None:
        heads.append(await gcs.GetClusterInfo(EMPTY))

    talk(first.address, write_some)
    talk(first.address, remember_cluster)
    first.kill()
    second = start(*arguments, **variables)
    talk(second.address, remember_cluster)
    talk(second.address, read_some)
    assert heads[0].cluster_id == heads[1].cluster_id
    assert heads[0].head_number < heads[1].head_number
    assert second.end() == 0


def test_nothing_answered_is_lost_when_it_is_killed_while_it_writes(start: Start) -> None:
    first = start()
    answered: dict[bytes, bytes] = {}

    async def write_until_killed(gcs: gcs_rpc.GcsServiceAsyncStub) -> None:
        async def write(writer: int) -> None:
            for number in range(10_000):
                key, value = b"%d/%d" % (writer, number), b"%d" % number * 20
                await gcs.KvPut(gcs_pb2.KvPutRequest(namespace=b"ns", key=key, value=value))
                answered[key] = value
                if len(answered) == 500:
                    first.process.kill()

        outcomes = await asyncio.gather(*(write(writer) for writer in range(20)), return_exceptions=True)
        assert all(isinstance(outcome, RpcError) for outcome in outcomes)

    async def compare(gcs: gcs_rpc.GcsServiceAsyncStub) -> None:
        requests = [gcs_pb2.KvGetRequest(namespace=b"ns", key=key) for key in answered]
        replies = await asyncio.gather(*map(gcs.KvGet, requests))
        assert [reply.value for reply in replies] == list(answered.values())

    talk(first.address, write_until_killed)
    first.process.wait()
    assert len(answered) >= 500
    talk(start().address, compare)


def test_the_same_addresses_can_be_used_again_at_once(start: Start, short_dir: str) -> None:
    path = f"{short_dir}/gcs"
    first = start(f"--unix-socket={path}")
    port = first.address.rpartition(":")[2]
    talk(f"unix:{path}", write_some)
    first.kill()
    second = start(f"--unix-socket={path}", f"--port={port}")
    assert second.address == first.address
    talk(f"unix:{path}", read_some)


def test_sigterm_ends_it_in_order_and_sigusr1_writes_its_state_to_the_log(start: Start) -> None:
    process = start()
    talk(process.address, write_some)
    process.process.send_signal(signal.SIGUSR1)

    async def look(gcs: gcs_rpc.GcsServiceAsyncStub) -> None:
        # Answered after the signal was handled, which comes first in the loop.
        while '"next_number": 2' not in process.log():
            await gcs.DumpState(EMPTY)

    talk(process.address, look)
    assert process.end() == 0
    assert "gcs_server ended" in process.log()


def test_a_wrong_secret_does_not_get_in(start: Start) -> None:
    process = start()
    with pytest.raises(RpcError, match="UNAUTHENTICATED"):
        asyncio.run(FramedTransport("wrong").connect(process.address, TIMEOUT_S))  # type: ignore[arg-type]


def test_a_port_in_use_is_said_and_the_process_ends(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start(f"--port={port}")
        assert process.ready_line == ""
        assert process.process.wait(TIMEOUT_S) == 1
    assert str(port) in process.log() and "in use" in process.log()


def test_a_second_gcs_on_the_same_file_does_not_start(start: Start) -> None:
    start()
    second = start()
    assert second.ready_line == ""
    assert second.process.wait(TIMEOUT_S) == 1
    assert "is another gcs_server using it" in second.log()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "{"], "is not JSON"),
        (
            ["--config", '{"gcs": {"health_check_period": 1}}'],
            "no setting 'health_check_period'; accepted are",
        ),
        (
            ["--config", '{"gcs": {"health_check_period_s": 0}}'],
            "health_check_period_s must be above 0 and finite, got 0",
        ),
        # Only of its whole name the value would be hidden.
        (["--redis-pass", "x"], "unrecognized arguments: --redis-pass"),
        (["--storage", "redis"], "takes one of --redis-address HOST:PORT (or the variable"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(start: Start, arguments: list[str], message: str) -> None:
    process = start(*arguments)
    assert process.process.wait(TIMEOUT_S) == 2
    assert message in process.log()


def test_it_imports_neither_numpy_nor_grpc_nor_redis_nor_the_api() -> None:
    listed = "sorted(name for name in sys.modules if name.split('.')[0] in sys.argv[1:])"
    code = f"import sys, {MODULE}; print({listed})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    done = subprocess.run(
        [sys.executable, "-c", code, "numpy", "grpc", "redis"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
