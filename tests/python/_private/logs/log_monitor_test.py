"""The log monitor as a process of its own, against a GCS of which only Publish is there; and what a driver
prints."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from ray_mono._private.logs.log_files import READ_BYTES_MAX
from ray_mono._private.logs.log_printing import LogPrinter
from ray_mono.protobuf import common_pb2, gcs_pb2
from ray_mono.protobuf.gcs_rpc import GcsServiceServicer, gcs_service_handlers
from ray_mono.rpc.framed import FramedTransport
from ray_mono.rpc.surface import CallContext
from tests.python._private.node.stand_in import reaper_environment

TIMEOUT_S = 30.0
# Of a process that lives: files of others are not followed for long.
LOG, OTHER_LOG = (f"worker-{name}-{os.getpid()}.out" for name in ("ab", "cd"))
SECRET = "secret"


class Gcs(GcsServiceServicer):
    """Keeps what is published."""

    def __init__(self) -> None:
        self.batches: list[common_pb2.LogBatch] = []
        self.published = asyncio.Condition()
        self.listens = asyncio.Event()
        self.requests: asyncio.Queue[common_pb2.LogFlush] = asyncio.Queue()
        self.reached, self.backlog = 1, 0
        self.num_asked = 0

    async def Publish(self, request: gcs_pb2.PublishRequest, context: CallContext) -> gcs_pb2.PublishReply:
        assert request.message.channel == gcs_pb2.LOG
        if not request.message.payload:
            self.num_asked += 1
            async with self.published:
                self.published.notify_all()
            return gcs_pb2.PublishReply(reached=self.reached, backlog=self.backlog)
        batch = common_pb2.LogBatch.FromString(request.message.payload)
        assert batch.job_id == request.message.key
        async with self.published:
            self.batches.append(batch)
            self.published.notify_all()
        return gcs_pb2.PublishReply(reached=self.reached, backlog=self.backlog)

    async def Subscribe(
        self, request: gcs_pb2.SubscribeRequest, context: CallContext
    ) -> AsyncIterator[gcs_pb2.PubMessage]:
        assert [wanted.channel for wanted in request.channels] == [gcs_pb2.LOG_FLUSH]
        self.listens.set()
        while True:
            flush = await self.requests.get()
            yield gcs_pb2.PubMessage(channel=gcs_pb2.LOG_FLUSH, payload=flush.SerializeToString())

    async def until(self, is_enough: Callable[[list[str]], bool]) -> list[str]:
        async with asyncio.timeout(TIMEOUT_S), self.published:
            await self.published.wait_for(lambda: is_enough(self.lines()))
        return self.lines()

    def unread(self) -> list[int]:
        return [batch.flushed.unread_bytes for batch in self.batches if batch.HasField("flushed")]

    def lines(self) -> list[str]:
        """As a driver has them, which leaves out what came before."""
        latest, lines = 0, []
        for batch in self.batches:
            if batch.sequence > latest:
                latest = batch.sequence
                lines += batch.lines
        return lines


def start_monitor(base: Path, gcs_address: str) -> subprocess.Popen[bytes]:
    reader, writer = os.pipe()
    command = [
        *(sys.executable, "-m", "ray_mono._private.logs.log_monitor", "--session-dir", str(base)),
        *("--gcs-address", gcs_address, "--node-ip", "10.0.0.1", "--node-id", "ab" * 28),
        *("--ready-fd", str(writer)),
    ]
    env = {**reaper_environment(), "RAY_MONO_AUTH_TOKEN": SECRET}
    process = subprocess.Popen(command, env=env, pass_fds=[writer])
    os.close(writer)
    with open(reader) as ready:
        assert ready.readline()
    return process


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


@contextlib.asynccontextmanager
async def following(base: Path, gcs: Gcs) -> AsyncIterator[None]:
    """A monitor that passes on to this GCS, until it is asked to end: then it does."""
    listener = await FramedTransport(SECRET).serve("127.0.0.1:0", gcs_service_handlers(gcs))
    monitor = await asyncio.to_thread(start_monitor, base, listener.address)
    yield
    monitor.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(monitor.wait, TIMEOUT_S) == 0
    await listener.close()


def test_passes_on_what_workers_write(session_base: Path) -> None:
    async def scene() -> None:
        gcs = Gcs()
        log = logs / LOG
        append(log, ":job_id:01000000\n:task_name:f\nwritten before\n")
        async with following(session_base, gcs):
            await gcs.until(lambda lines: lines == ["written before"])
            append(log, "written after\n")
            await gcs.until(lambda lines: lines == ["written before", "written after"])
            append(log, "written last\nbegun")
        assert gcs.lines()[-2:] == ["written last", "begun"]
        batch = gcs.batches[0]
        assert (batch.pid, batch.name, batch.host, batch.is_error) == (os.getpid(), "f", "10.0.0.1", False)

    logs = session_base / "logs"
    logs.mkdir()
    asyncio.run(scene())


def test_waits_for_a_gcs_that_is_away_and_loses_nothing(session_base: Path) -> None:
    async def scene() -> None:
        gcs, address = Gcs(), f"unix:{session_base}/gcs"
        append(logs / LOG, ":job_id:01000000\none\n")
        monitor = await asyncio.to_thread(start_monitor, session_base, address)
        listener = await FramedTransport(SECRET).serve(address, gcs_service_handlers(gcs))
        await gcs.until(lambda lines: lines == ["one"])
        await listener.close()
        append(logs / LOG, "two\n")
        listener = await FramedTransport(SECRET).serve(address, gcs_service_handlers(gcs))
        await gcs.until(lambda lines: lines == ["one", "two"])
        await listener.close()
        # The next one begins with nothing. What its predecessor may not have passed on comes again.
        gcs = Gcs()
        listener = await FramedTransport(SECRET).serve(address, gcs_service_handlers(gcs))
        await gcs.until(lambda lines: lines == ["one", "two"])
        monitor.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(monitor.wait, TIMEOUT_S) == 0
        await listener.close()

    logs = session_base / "logs"
    logs.mkdir()
    asyncio.run(scene())


def test_a_driver_that_leaves_is_told_when_all_that_was_written_has_been_sent(session_base: Path) -> None:
    num_lines = 3 * READ_BYTES_MAX // 100

    async def scene() -> None:
        gcs = Gcs()
        async with following(session_base, gcs):
            await gcs.listens.wait()
            append(logs / LOG, ":job_id:01000000\n" + "x" * 99 + ("\n" + "x" * 99) * num_lines)
            gcs.requests.put_nowait(common_pb2.LogFlush(job_id=b"\x01\0\0\0", token=b"token"))
            async with asyncio.timeout(TIMEOUT_S), gcs.published:
                await gcs.published.wait_for(
                    lambda: any(
                        batch.HasField("flushed") and not batch.flushed.unread_bytes for batch in gcs.batches
                    )
                )
            # The begun line as well.
            assert len(gcs.lines()) == num_lines + 1 and set(gcs.lines()) == {"x" * 99}
            told = [batch.flushed for batch in gcs.batches if batch.HasField("flushed")]
            unread_bytes = [flushed.unread_bytes for flushed in told]
            assert {flushed.token for flushed in told} == {b"token"}
            assert (
                unread_bytes == sorted(unread_bytes, reverse=True) and gcs.batches[-1].job_id == b"\x01\0\0\0"
            )

    logs = session_base / "logs"
    logs.mkdir()
    asyncio.run(scene())


def test_what_a_driver_cannot_take_yet_waits_in_its_files(session_base: Path) -> None:
    async def scene() -> None:
        gcs = Gcs()
        gcs.backlog = 1000
        append(logs / LOG, ":job_id:01000000\none\n")
        async with following(session_base, gcs):
            await gcs.until(lambda lines: lines == ["one"])
            append(logs / LOG, "two\n")
            await gcs.until(lambda lines: gcs.num_asked > 3)
            append(logs / OTHER_LOG, ":job_id:02000000\nanother's\n")
            await gcs.until(lambda lines: lines == ["one", "another's"])
            gcs.requests.put_nowait(common_pb2.LogFlush(job_id=b"\x01\0\0\0", token=b"token"))
            await gcs.until(lambda lines: gcs.unread() != [])
            asked = gcs.num_asked
            await gcs.until(lambda lines: gcs.num_asked > asked + 3)
            gcs.backlog = 0
            await gcs.until(lambda lines: lines == ["one", "another's", "two"] and gcs.unread()[-1] == 0)
            # Told once, as long as nothing changes.
            assert gcs.unread() == [len("two\n"), 0]

    logs = session_base / "logs"
    logs.mkdir()
    asyncio.run(scene())


def test_a_driver_that_has_enough_to_show_gets_no_more_until_it_asks_or_is_gone(session_base: Path) -> None:
    async def scene() -> None:
        gcs = Gcs()
        async with following(session_base, gcs):
            await gcs.listens.wait()
            log, job_id = logs / LOG, b"\x01\0\0\0"
            append(log, ":job_id:01000000\none\n")
            await gcs.until(lambda lines: lines == ["one"])
            gcs.requests.put_nowait(common_pb2.LogFlush(job_id=job_id, hold=True))
            await gcs.until(lambda lines: gcs.num_asked > 1)
            append(log, "two\n")
            asked = gcs.num_asked
            await gcs.until(lambda lines: gcs.num_asked > asked + 3)
            assert gcs.lines() == ["one"]
            gcs.requests.put_nowait(common_pb2.LogFlush(job_id=job_id))
            await gcs.until(lambda lines: lines == ["one", "two"])
            gcs.requests.put_nowait(common_pb2.LogFlush(job_id=job_id, hold=True))
            await gcs.until(lambda lines: gcs.num_asked > asked + 10)
            append(log, "three\n")
            gcs.reached = 0
            await gcs.until(lambda lines: lines == ["one", "two", "three"])

    logs = session_base / "logs"
    logs.mkdir()
    asyncio.run(scene())


def test_one_monitor_of_a_directory_works_and_the_next_takes_over(session_base: Path) -> None:
    async def scene() -> None:
        gcs = Gcs()
        listener = await FramedTransport(SECRET).serve("127.0.0.1:0", gcs_service_handlers(gcs))
        first = await asyncio.to_thread(start_monitor, session_base, listener.address)
        append(log, ":job_id:01000000\none\n")
        await gcs.until(lambda lines: lines == ["one"])
        second = await asyncio.to_thread(start_monitor, session_base, listener.address)
        append(log, "two\n")
        await gcs.until(lambda lines: lines == ["one", "two"])
        first.kill()
        append(log, "meanwhile\n")
        append(other, ":job_id:01000000\nanother worker\n")
        await asyncio.to_thread(first.wait, TIMEOUT_S)
        append(log, "begun")
        await gcs.until(lambda lines: len(lines) == 5)
        append(log, " and ended\n")
        lines = await gcs.until(lambda lines: len(lines) == 6)
        assert lines[:2] == ["one", "two"] and set(lines[2:4]) == {"meanwhile", "another worker"}
        assert lines[4:] == ["begun", " and ended"]
        second.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(second.wait, TIMEOUT_S) == 0
        await listener.close()

    logs = session_base / "logs"
    logs.mkdir()
    log, other = logs / LOG, logs / OTHER_LOG
    asyncio.run(scene())


def test_one_that_dies_before_it_has_passed_on_anything_costs_nothing(session_base: Path) -> None:
    async def scene() -> None:
        gcs, address = Gcs(), f"unix:{session_base}/gcs"
        append(log, ":job_id:01000000\none\n")
        # It waits for a GCS that is not there.
        first = await asyncio.to_thread(start_monitor, session_base, address)
        first.kill()
        await asyncio.to_thread(first.wait, TIMEOUT_S)
        listener = await FramedTransport(SECRET).serve(address, gcs_service_handlers(gcs))
        second = await asyncio.to_thread(start_monitor, session_base, address)
        assert await gcs.until(lambda lines: bool(lines)) == ["one"]
        second.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(second.wait, TIMEOUT_S) == 0
        await listener.close()

    logs = session_base / "logs"
    logs.mkdir()
    log = logs / LOG
    asyncio.run(scene())


def is_longer(than: int, lines: list[str]) -> bool:
    return len(lines) > than


def test_monitors_that_die_one_after_another_lose_and_double_no_line(session_base: Path) -> None:
    async def scene() -> None:
        gcs = Gcs()
        listener = await FramedTransport(SECRET).serve("127.0.0.1:0", gcs_service_handlers(gcs))
        append(log, ":job_id:01000000\n")
        monitor = await asyncio.to_thread(start_monitor, session_base, listener.address)
        for number in range(10):
            append(log, "".join(f"line {number}.{each}\n" for each in range(2000)))
            # Somewhere in the middle.
            await gcs.until(functools.partial(is_longer, 2000 * number))
            monitor.kill()
            await asyncio.to_thread(monitor.wait, TIMEOUT_S)
            monitor = await asyncio.to_thread(start_monitor, session_base, listener.address)
        lines = await gcs.until(lambda lines: len(lines) >= 20_000)
        assert lines == [f"line {number}.{each}" for number in range(10) for each in range(2000)]
        monitor.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(monitor.wait, TIMEOUT_S) == 0
        await listener.close()

    logs = session_base / "logs"
    logs.mkdir()
    log = logs / LOG
    asyncio.run(scene())


def test_a_driver_shows_who_wrote_a_line() -> None:
    out, error = io.StringIO(), io.StringIO()
    here = common_pb2.LogBatch(pid=7, name="f", host="10.0.0.1", lines=["one", "two"])
    there = common_pb2.LogBatch(pid=8, host="10.0.0.2", is_error=True, lines=["oh"])
    show = LogPrinter("10.0.0.1", out=out, error=error)
    for batch in (here, there):
        show(batch)
    assert out.getvalue() == "(f pid=7) one\n(f pid=7) two\n"
    assert error.getvalue() == "(pid=8, ip=10.0.0.2) oh\n"
    out.close()
    show(here)
