"""One socket of a reactor, without the reactor: what it makes of what comes, and the order of what goes."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest

from ray_mono.rpc import framing
from ray_mono.rpc.reactor import Reactor
from ray_mono.rpc.reactor_socket import READABLE, WRITABLE, ReactorSocket
from tests.rpc.reactor_pair import WAIT_S


class Loop:
    """What a socket asks of its reactor."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.looks_for = READABLE
        self.dirty: list[Any] = []
        self.rings = 0

    def modify(self, pollable: Any, events: int) -> None:
        self.looks_for = events

    def remove(self, fd: int) -> None:
        self.looks_for = 0

    def mark_dirty(self, connection: Any, rings: bool = True) -> None:
        self.dirty.append(connection)
        self.rings += rings


class Ours(ReactorSocket):
    """Keeps what it takes."""

    def __init__(self, loop: Loop, sock: socket.socket) -> None:
        super().__init__(cast(Reactor, loop), sock, "the peer")
        self.loop = loop
        self.taken: list[framing.Frame] = []
        self.reasons: list[str] = []
        self.on_close(self.reasons.append)

    def _take(self, frame: framing.Frame) -> None:
        self.taken.append(frame)
        if frame[3] == b"a bug":
            raise ZeroDivisionError
        if frame[3] == b"a mistake":
            raise framing.FrameError("it says so")


@contextmanager
def connected(tcp: bool = False) -> Iterator[tuple[Ours, socket.socket]]:
    if tcp:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            here = socket.create_connection(listener.getsockname())
            there, _ = listener.accept()
    else:
        here, there = socket.socketpair()
    there.settimeout(WAIT_S)
    with here, there:
        yield Ours(Loop(), here), there


def frames_of(payloads: list[bytes]) -> list[framing.Frame]:
    return [(1 + number % framing.END, number, number, payload) for number, payload in enumerate(payloads)]


def told(ours: Ours, there: socket.socket, pieces: list[bytes]) -> list[framing.Frame]:
    """What is taken when it comes in these pieces."""
    before = len(ours.taken)
    for piece in pieces:
        there.sendall(piece)
        ours.on_events(READABLE)
    return ours.taken[before:]


def test_frames_are_the_same_in_whatever_pieces_they_come() -> None:
    frames = frames_of([b"", b"x", b"payload" * 100, bytes(5000)] * 6)
    stream = b"".join(framing.encode(*frame) for frame in frames)
    with connected() as (ours, there):
        assert told(ours, there, [framing.encode(*frame) for frame in frames]) == frames
        assert (
            told(ours, there, [stream[start : start + 20_000] for start in range(0, len(stream), 20_000)])
            == frames
        )
        for seed in range(20):
            draw = random.Random(seed)
            cuts = sorted(draw.sample(range(len(stream)), 40))
            pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
            assert told(ours, there, [piece for piece in pieces if piece]) == frames
    assert not ours.reasons


def test_a_piece_that_looks_like_a_whole_frame_is_still_the_end_of_another() -> None:
    inner = framing.encode(framing.REPLY, 0, 1, b"inside")
    outer = framing.encode(framing.REPLY, 0, 2, inner)
    with connected() as (ours, there):
        assert told(ours, there, [outer[: -len(inner)], inner]) == [(framing.REPLY, 0, 2, inner)]


@pytest.mark.parametrize("kind", [0, framing.END + 1])
def test_a_whole_frame_of_no_kind_of_ours_ends_the_connection(kind: int) -> None:
    with connected() as (ours, there):
        there.sendall(framing.HEADER.pack(7, kind, 0, 0))
        ours.on_events(READABLE)
        assert ours.is_closed and "none of this protocol" in ours.reasons[0] and not ours.taken


@pytest.mark.parametrize("together", [True, False])
def test_a_bug_of_a_handler_costs_no_other_frame_and_a_mistake_of_the_peer_the_connection(
    together: bool,
) -> None:
    frames = frames_of([b"a bug", b"next", b"a mistake", b"behind it"])
    pieces = [framing.encode(*frame) for frame in frames]
    with connected() as (ours, there):
        for piece in [b"".join(pieces)] if together else pieces[:3]:
            there.sendall(piece)
            ours.on_events(READABLE)
        assert ours.taken == frames[:3] and ours.reasons == ["the peer: it says so"]


def test_what_came_with_the_end_is_taken_before_it() -> None:
    with connected() as (ours, there):
        ours.write(b"nobody reads this")
        there.sendall(framing.encode(framing.REPLY, 0, 1, b"the last"))
        there.close()
        ours.on_events(READABLE | WRITABLE)
        assert ours.taken == [(framing.REPLY, 0, 1, b"the last")]


def test_what_is_sent_at_once_goes_behind_what_was_written() -> None:
    with connected() as (ours, there):
        ours.send(b"1")
        assert there.recv(100) == b"1" and not ours.loop.dirty
        ours.write(b"2")
        ours.write(b"3")
        assert ours.loop.rings == 1 and ours.loop.dirty == [ours] and ours.has_unsent
        ours.send(b"4")
        assert there.recv(100) == b"234" and ours.loop.rings == 1 and not ours.has_unsent


def test_what_the_peer_does_not_take_goes_when_it_does() -> None:
    sent = bytes(random.Random(1).randbytes(1 << 20))
    with connected() as (ours, there):
        ours.send(sent)
        ours.send(b"behind it")
        assert ours.has_unsent and ours.loop.looks_for == READABLE | WRITABLE
        received = b""
        while ours.has_unsent:
            received += there.recv(1 << 16)
            ours.on_events(WRITABLE)
        while len(received) < len(sent) + 9:
            received += there.recv(1 << 16)
        assert received == sent + b"behind it" and ours.loop.looks_for == READABLE


@pytest.mark.parametrize("tcp", [False, True])
def test_who_waits_for_what_was_written_waits_until_the_peer_takes_it_but_not_for_ever(tcp: bool) -> None:
    sent = bytes(1 << 20)
    with connected(tcp) as (ours, there):
        ours.write(sent)
        assert not ours.drain(0.01) and ours.has_unsent
        received = bytearray()

        def read() -> None:
            while len(received) < len(sent):
                received.extend(there.recv(1 << 16))

        reader = threading.Thread(target=read)
        reader.start()
        assert ours.drain(60) and not ours.has_unsent
        reader.join()
        ours.write(sent)
        there.close()
        ours.on_events(READABLE)  # the end
        assert ours.drain(60) and ours.drain(60)


def test_what_tcp_has_taken_and_holds_back_has_not_left() -> None:
    with connected(tcp=True) as (ours, there):
        sent = 0
        while not ours.has_unsent:
            ours.send(bytes(10_000))
            sent += 10_000
        assert not ours.loop.dirty and ours.loop.looks_for == READABLE  # it has taken all
        assert not ours.drain(0.01)
        while sent:
            sent -= len(there.recv(sent))
        assert not ours.has_unsent and ours.drain(60)


def test_nothing_goes_to_a_peer_that_has_gone() -> None:
    with connected() as (ours, there):
        there.close()
        ours.send(b"1")
        ours.write(b"2")
        ours.flush()
        assert not ours.has_unsent and not ours.is_closed and ours.loop.looks_for == READABLE
        ours.on_events(READABLE)
        assert ours.is_closed and ours.reasons == ["the peer ended the connection"]
        ours.send(b"3")
        assert not ours.has_unsent and len(ours.reasons) == 1


def test_what_a_peer_said_before_it_went_is_read_also_where_something_is_sent_first() -> None:
    with connected() as (ours, there):
        ours.send(b"unread")
        there.sendall(framing.encode(framing.REPLY, 0, 1, b"answer"))
        there.close()
        ours.send(b"more")
        while not ours.is_closed:
            ours.on_events(READABLE)
        assert [taken[3] for taken in ours.taken] == [b"answer"]
