"""Real heads over a real Redis: one is stopped and replaced, and Redis itself is killed."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Iterator

import pytest

from ray_mono.common.process import FINAL_STATUS
from ray_mono.protobuf import common_pb2, gcs_pb2, gcs_rpc
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.gcs.gcs_process import TIMEOUT_S, GcsProcess, Start, connected, talk
from tests.gcs.redis_servers import RedisProcess
from tests.waiting import wait_until

EMPTY = common_pb2.Empty()
WRITES_AROUND_KILL = 400
TOOK_OVER = r"head \d+ of this cluster, on .*, took over from this one, which is head \d+"


@pytest.fixture
def server(short_dir: str) -> Iterator[RedisProcess]:
    server = RedisProcess(f"{short_dir}/redis", ["appendonly yes"])
    server.start()
    yield server
    server.kill()


def kv(value: bytes) -> gcs_pb2.KvPutRequest:
    return gcs_pb2.KvPutRequest(namespace=b"ns", key=b"key", value=value, overwrite=True)


GET = gcs_pb2.KvGetRequest(namespace=b"ns", key=b"key")


def start_head(start: Start, server: RedisProcess, *arguments: str) -> GcsProcess:
    return start("--redis-address", server.address, *arguments)


def test_a_head_that_was_stopped_while_another_took_over_answers_nobody_and_ends(
    start: Start, server: RedisProcess
) -> None:
    old = start_head(start, server)

    async def scene() -> None:
        async with connected(old.address) as client, connected(old.address) as other:
            await client.KvPut(kv(b"old"))
            number = (await client.GetClusterInfo(EMPTY)).head_number
            watching = asyncio.ensure_future(anext(aiter(other.Subscribe(gcs_pb2.SubscribeRequest()))))
            old.process.send_signal(signal.SIGSTOP)
            # They lie in its sockets until it goes on.
            waiting = [
                asyncio.ensure_future(call)
                for call in (
                    client.KvGet(GET),
                    client.KvPut(kv(b"too late")),
                    client.GetClusterInfo(EMPTY),
                    client.KillActor(gcs_pb2.KillActorRequest(actor_id=b"a" * 16)),
                    other.AddTaskEvents(gcs_pb2.TaskEvents()),
                    other.GetTaskEvents(gcs_pb2.GetTaskEventsRequest()),
                    other.GetAllResources(gcs_pb2.GetAllResourcesRequest()),
                    other.DumpState(EMPTY),
                )
            ]
            await asyncio.sleep(0)
            new = await asyncio.to_thread(start_head, start, server)
            async with connected(new.address) as client_of_new:
                assert (await client_of_new.KvGet(GET)).value == b"old"
                assert (await client_of_new.GetClusterInfo(EMPTY)).head_number > number
                await client_of_new.KvPut(kv(b"new"))
                old.process.send_signal(signal.SIGCONT)
                outcomes = await asyncio.gather(*waiting, watching, return_exceptions=True)
                for outcome in outcomes:
                    assert isinstance(outcome, RpcError) and outcome.code is StatusCode.UNAVAILABLE, outcome
                assert await asyncio.to_thread(old.process.wait, TIMEOUT_S) == FINAL_STATUS
                assert (await client_of_new.KvGet(GET)).value == b"new"

    asyncio.run(scene())
    assert re.search(TOOK_OVER, old.log())


def test_a_second_head_takes_over_at_once_and_the_first_ends_though_nobody_calls_it(
    start: Start, server: RedisProcess
) -> None:
    first = start_head(start, server)
    second = start_head(start, server)
    assert first.process.wait(TIMEOUT_S) == FINAL_STATUS
    assert re.search(TOOK_OVER, first.log())
    talk(second.address, lambda gcs: gcs.KvPut(kv(b"value")))
    assert second.end() == 0
    assert server.ask("HGET", "ray_mono:{default}:head", "released") == b"1"


def test_after_a_head_of_this_machine_that_was_killed_nobody_waits_for_its_lease(
    start: Start, server: RedisProcess
) -> None:
    waits = "once its lease is over"
    killed = start_head(start, server)
    killed.kill()
    stopped = start_head(start, server)
    assert waits not in stopped.log()
    stopped.process.send_signal(signal.SIGSTOP)
    assert start_head(start, server).log().count(waits) == 1
    stopped.kill()


def test_a_redis_that_is_killed_and_back_has_every_answered_write_and_is_warned_of_once(
    start: Start, server: RedisProcess
) -> None:
    head = start_head(start, server)
    answered: dict[bytes, bytes] = {}

    async def write(gcs: gcs_rpc.GcsServiceAsyncStub) -> None:
        async def writer(name: int) -> None:
            for number in range(WRITES_AROUND_KILL):
                key, value = b"%d/%d" % (name, number), b"%d" % number * 20
                await gcs.KvPut(gcs_pb2.KvPutRequest(namespace=b"many", key=key, value=value))
                answered[key] = value
                if len(answered) == WRITES_AROUND_KILL:
                    server.kill()
                    asyncio.get_running_loop().call_later(0.5, server.start)

        await asyncio.gather(*(writer(name) for name in range(4)))

    async def compare(gcs: gcs_rpc.GcsServiceAsyncStub) -> None:
        for key, value in answered.items():
            reply = await gcs.KvGet(gcs_pb2.KvGetRequest(namespace=b"many", key=key))
            assert reply.value == value

    talk(head.address, write)
    assert len(answered) == 4 * WRITES_AROUND_KILL
    log = head.log()
    assert log.count("cannot be reached to write") == 1 and log.count("is back after") == 1
    head.kill()
    talk(start_head(start, server).address, compare)


def test_a_redis_that_stays_away_ends_the_head_with_the_reason(start: Start, server: RedisProcess) -> None:
    head = start_head(start, server, "--config", '{"gcs": {"redis_retry_for_s": 0.5}}')

    async def write(gcs: gcs_rpc.GcsServiceAsyncStub) -> None:
        server.kill()
        with pytest.raises(RpcError, match="cannot be reached to write") as failed:
            await gcs.KvPut(kv(b"value"))
        assert failed.value.code is StatusCode.UNAVAILABLE

    talk(head.address, write)
    assert head.process.wait(TIMEOUT_S) == 1
    assert f"Redis at {server.address} cannot be reached to write" in head.log()


def test_a_redis_without_memory_for_a_write_is_waited_for(start: Start, server: RedisProcess) -> None:
    head = start_head(start, server)
    there_is_none = "There is no room for the head's store: Redis at"

    async def write(gcs: gcs_rpc.GcsServiceAsyncStub) -> None:
        await gcs.KvPut(kv(b"before"))
        server.ask("CONFIG", "SET", "maxmemory", 1)
        put = asyncio.ensure_future(gcs.KvPut(kv(b"meanwhile")))
        await asyncio.to_thread(wait_until, lambda: there_is_none in head.log(), "the warning")
        assert not put.done()
        server.ask("CONFIG", "SET", "maxmemory", 0)
        await put
        assert (await gcs.KvGet(GET)).value == b"meanwhile"

    talk(head.address, write)
    assert head.log().count(there_is_none) == 1 and "(its maxmemory is used)" in head.log()
    assert head.end() == 0


def test_a_redis_that_comes_back_empty_ends_the_head_with_the_reason(start: Start, short_dir: str) -> None:
    server = RedisProcess(f"{short_dir}/forgetful", ['save ""', "appendonly no"])
    server.start()
    head = start_head(start, server)
    server.kill()
    server.start()
    try:
        assert head.process.wait(TIMEOUT_S) == 1
        assert "has lost changes that it had acknowledged" in head.log()
    finally:
        server.kill()


def test_a_password_in_an_address_is_not_shown(start: Start, short_dir: str) -> None:
    server = RedisProcess(
        f"{short_dir}/redis", ["requirepass very-secret"], client_options={"password": "very-secret"}
    )
    server.start()
    try:
        url = f"redis://:very-secret@{server.address}/0"
        for arguments, variables in (
            (["--redis-address", url], {}),
            (["--storage=redis"], {"RAY_MONO_REDIS_ADDRESS": url}),
        ):
            head = start(*arguments, **variables)
            with open(f"/proc/{head.process.pid}/cmdline", "rb") as file:
                assert b"very-secret" not in file.read()
            assert head.end() == 0
            assert "very-secret" not in head.log()
    finally:
        server.kill()
