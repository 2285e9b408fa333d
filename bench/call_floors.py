"""What a call costs a driver, beside the least that its hand-offs and round trips can cost.

    python bench/call_floors.py [--calls N] [--rounds N]

It is CPU, not time: a busy machine tells the same. Three tables, in µs of CPU a call, medians of the rounds:

    a hand-off      an item from one thread to another that sleeps, by the means that Python has; both threads
    a round trip    one of our frames there and back between two processes over a Unix socket; each process
    our own calls   what the driver's process uses, all threads, for a task and for an actor's call

Hand-offs and round trips do what src/rpc does, and nothing else. The rest of a call's cost is the runtime's.
"""

from __future__ import annotations

import argparse
import os
import queue
import resource
import select
import socket
import statistics
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).absolute().parent.parent / "python"))

from ray_mono.core_worker import task_wire
from ray_mono.protobuf import core_worker_pb2
from ray_mono.rpc import framing

CALLS = 3000
ROUNDS = 9
IN_FLIGHT = 1000
# One recv of ours, and what goes into one send.
READ_BYTES = 1 << 16
TASK_ID = bytes(24)
VALUE = b"\x80\x05C\x02ok\x94."
"""The pickle of a small answer."""
_USED_S = struct.Struct("<d")

Put = Callable[[Any], object]
Get = Callable[[], Any]
Row = tuple[str, list[float]]


# ---- hand-offs between two threads


@contextmanager
def simple_queue() -> Iterator[tuple[Put, Get]]:
    items: queue.SimpleQueue[Any] = queue.SimpleQueue()
    yield items.put, items.get


@contextmanager
def gate() -> Iterator[tuple[Put, Get]]:
    """A deque and a lock, as a waiter sleeps that does not lead."""
    items: deque[Any] = deque()
    lock = threading.Lock()
    lock.acquire()

    def put(item: Any) -> None:
        items.append(item)
        lock.release()

    def get() -> Any:
        lock.acquire()
        return items.popleft()

    yield put, get


@contextmanager
def rung_epoll() -> Iterator[tuple[Put, Get]]:
    """A deque, an eventfd and an epoll, as the reactor's leader naps."""
    items: deque[Any] = deque()
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    epoll = select.epoll()
    epoll.register(fd, select.EPOLLIN)

    def put(item: Any) -> None:
        items.append(item)
        os.eventfd_write(fd, 1)

    def get() -> Any:
        while not items:
            epoll.poll()
            os.eventfd_read(fd)
        return items.popleft()

    yield put, get
    epoll.close()
    os.close(fd)


def hand_off_us(means: Callable[[], Any], count: int) -> float:
    """Of one hand-off, both threads: an item goes to another thread and comes back, one at a time."""
    used_s: list[float] = []
    with means() as (put_there, get_there), means() as (put_here, get_here):

        def give_back() -> None:
            began_s = time.thread_time()
            while (item := get_there()) is not None:
                put_here(item)
            used_s.append(time.thread_time() - began_s)

        thread = threading.Thread(target=give_back)
        thread.start()
        began_s = time.thread_time()
        for _ in range(count):
            put_there(1)
            get_here()
        used_s.append(time.thread_time() - began_s)
        put_there(None)
        thread.join()
    return sum(used_s) / (2 * count) * 1e6


def bulk_hand_off_us(count: int) -> float:
    """Of one item of IN_FLIGHT that share a ring."""
    used_s: list[float] = []
    items: deque[int] = deque()
    with rung_epoll() as (ring, wait), rung_epoll() as (ring_back, wait_back):

        def take() -> None:
            began_s = time.thread_time()
            while wait() is not None:
                while items:
                    items.popleft()
                ring_back(1)
            used_s.append(time.thread_time() - began_s)

        thread = threading.Thread(target=take)
        thread.start()
        began_s = time.thread_time()
        for _ in range(max(1, count // IN_FLIGHT)):
            for number in range(IN_FLIGHT):
                items.append(number)
            ring(1)
            wait_back()
        used_s.append(time.thread_time() - began_s)
        ring(None)
        thread.join()
    return sum(used_s) / (max(1, count // IN_FLIGHT) * IN_FLIGHT) * 1e6


# ---- round trips of a frame between two processes


class ByMessage:
    """Requests and answers are made as protobuf messages, and read from them."""

    name = "protobuf messages"

    def request(self) -> bytes:
        message = core_worker_pb2.PushTaskRequest(template_id=1, task_id=TASK_ID, depth=1)
        return message.SerializeToString()

    def answer(self, payload: bytes) -> bytes:
        request = core_worker_pb2.PushTaskRequest.FromString(payload)
        if request.task_id != TASK_ID:
            raise ValueError("a request was garbled")
        return core_worker_pb2.PushTaskReply(plain=VALUE, run_us=1).SerializeToString()

    def value(self, payload: bytes) -> bytes:
        return core_worker_pb2.PushTaskReply.FromString(payload).plain


class ByHand(ByMessage):
    """The same bytes, put together and cut apart by hand, as for a usual call (task_wire.py)."""

    name = "written by hand"

    def __init__(self) -> None:
        self._head = task_wire.push_head(1, 1, len(TASK_ID))

    def request(self) -> bytes:
        return self._head + TASK_ID

    def answer(self, payload: bytes) -> bytes:
        if not payload.startswith(self._head) or payload[len(self._head) :] != TASK_ID:
            raise ValueError("a request was garbled")
        return task_wire.usual_answer(1, VALUE)

    def value(self, payload: bytes) -> bytes:
        return payload[task_wire.USUAL_ANSWER.size :]


def _answer_all(sock: socket.socket, wire: ByMessage) -> None:
    """Answers what came with one recv with one send. At the end it says how much CPU it took."""
    parser = framing.FrameParser()
    began_s = time.thread_time()
    while data := sock.recv(READ_BYTES):
        sock.sendall(
            b"".join(
                framing.encode(framing.REPLY, 0, call_id, wire.answer(payload))
                for _, _, call_id, payload in parser.feed(data)
            )
        )
    sock.sendall(_USED_S.pack(time.thread_time() - began_s))


def _call_all(sock: socket.socket, wire: ByMessage, count: int, in_flight: int) -> None:
    parser = framing.FrameParser()
    made = answered = 0
    while answered < count:
        frames = []
        while made < min(count, answered + in_flight):
            made += 1
            frames.append(framing.encode(framing.REQUEST, 0, made, wire.request()))
        if frames:
            sock.sendall(b"".join(frames))
        for _, _, _, payload in parser.feed(sock.recv(READ_BYTES)):
            answered += 1
            if wire.value(payload) != VALUE:
                raise ValueError("an answer was garbled")


def round_trip_us(wire: ByMessage, count: int, in_flight: int) -> list[float]:
    """What one call costs the process that makes it, and the one that answers."""
    here, there = socket.socketpair()
    pid = os.fork()
    if not pid:
        try:
            here.close()
            _answer_all(there, wire)
        finally:
            os._exit(0)
    there.close()
    with here:
        began_s = time.thread_time()
        _call_all(here, wire, count, in_flight)
        mine_s = time.thread_time() - began_s
        here.shutdown(socket.SHUT_WR)
        [theirs_s] = _USED_S.unpack(here.recv(_USED_S.size))
    os.waitpid(pid, 0)
    return [mine_s / count * 1e6, theirs_s / count * 1e6]


# ---- our own calls


def own_call_us(ray: Any, call: Callable[[], Any], count: int) -> list[float]:
    """What `count` calls in flight cost the driver's process: to submit one; to take its answer and read its
    value, all that its threads do else meanwhile; both; how often one of its threads went to sleep."""
    switches = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
    process_s, thread_s = time.process_time(), time.thread_time()
    refs = [call() for _ in range(count)]
    submit_s = time.thread_time() - thread_s
    ray.get(refs)
    del refs
    all_s = time.process_time() - process_s
    slept = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - switches
    return [*(seconds / count * 1e6 for seconds in (submit_s, all_s - submit_s, all_s)), slept / count]


def own_calls(ray: Any, count: int, rounds: int) -> list[Row]:
    """ray: connected, with a CPU."""

    @ray.remote
    def task() -> None:
        pass

    @ray.remote(num_cpus=0)
    class Actor:
        def nothing(self) -> None:
            pass

    plain, threaded = Actor.remote(), Actor.options(max_concurrency=16).remote()
    calls = {
        "task": task.remote,
        "actor's call": plain.nothing.remote,
        "call of an actor with 16 threads": threaded.nothing.remote,
    }
    for call in calls.values():
        ray.get([call() for _ in range(count)])
    # In turn, so that what else the machine does meets all of them.
    measured = [{name: own_call_us(ray, call, count) for name, call in calls.items()} for _ in range(rounds)]
    return [(name, medians([each[name] for each in measured])) for name in calls]


# ---- the tables


def medians(samples: list[list[float]]) -> list[float]:
    """Column by column."""
    return [statistics.median(column) for column in zip(*samples, strict=True)]


def hand_offs(count: int, rounds: int) -> list[Row]:
    means = {
        "queue.SimpleQueue": simple_queue,
        "deque, lock (a waiter that sleeps)": gate,
        "deque, eventfd, epoll (the leader that naps)": rung_epoll,
    }
    found = [
        (name, medians([[hand_off_us(each, count)] for _ in range(rounds)])) for name, each in means.items()
    ]
    bulk = medians([[bulk_hand_off_us(count)] for _ in range(rounds)])
    return [*found, (f"deque, {IN_FLIGHT:,} items to a ring", bulk)]


def round_trips(count: int, rounds: int) -> list[Row]:
    return [
        (
            f"{wire.name}, {'alone' if in_flight == 1 else f'{in_flight:,} in flight'}",
            medians([round_trip_us(wire, count, in_flight) for _ in range(rounds)]),
        )
        for wire in (ByMessage(), ByHand())
        for in_flight in (1, IN_FLIGHT)
    ]


def show(title: str, columns: tuple[str, ...], rows: list[Row]) -> None:
    print(f"\n{title:46s}" + "".join(f"{column:>14s}" for column in columns))
    for name, values in rows:
        print(f"  {name:44s}" + "".join(f"{value:14.2f}" for value in values))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--calls", type=int, default=CALLS, help="of each kind and round (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="default: %(default)s")
    arguments = parser.parse_args()
    count, rounds = arguments.calls, arguments.rounds
    show("a hand-off between two threads", ("both",), hand_offs(count, rounds))
    show("a round trip between two processes", ("caller", "answerer"), round_trips(count, rounds))
    import ray_mono as ray

    ray.init(address="local", num_cpus=1)
    columns = ("submit", "reply", "together", "sleeps a call")
    show(f"our own calls, {count:,} in flight", columns, own_calls(ray, count, rounds))
    ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
