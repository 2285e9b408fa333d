"""Frames survive any cutting of the stream, and no stream makes the parser hang or grow."""

from __future__ import annotations

import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_mono.rpc import framing
from ray_mono.rpc.framing import (
    Frame,
    FrameError,
    FrameParser,
    FrameTooLargeError,
    MethodNumbers,
    MethodPaths,
)
from ray_mono.rpc.surface import RpcError, StatusCode

FRAMES = st.lists(
    st.tuples(
        st.integers(framing.METHOD, framing.END),
        st.integers(0, 0xFFFF),
        st.integers(0, 0xFFFFFFFF),
        st.binary(max_size=300),
    ),
    max_size=20,
)


def parse(pieces: list[bytes]) -> list[Frame]:
    parser = FrameParser()
    return [frame for piece in pieces for frame in parser.feed(piece)]


@given(frames=FRAMES, data=st.data())
def test_any_cutting_of_a_stream_gives_the_same_frames(frames: list[Frame], data: st.DataObject) -> None:
    stream = b"".join(framing.encode(*frame) for frame in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=30)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert parse(pieces) == frames
    assert parse([stream[position : position + 1] for position in range(len(stream))]) == frames


@given(pieces=st.lists(st.binary(max_size=200), max_size=20))
def test_garbage_is_refused_or_waited_for_but_never_kept_beyond_what_arrived(pieces: list[bytes]) -> None:
    parser = FrameParser()
    for piece in pieces:
        try:
            parser.feed(piece)
        except FrameError:
            with pytest.raises(FrameError):
                parser.feed(b"")
            return
    arrived = sum(map(len, pieces))
    assert len(parser._head) < framing.HEADER_SIZE and len(parser._body) <= arrived


@pytest.mark.parametrize("kind_of_bytes", [bytes, bytearray, memoryview])
def test_payloads_are_bytes_of_their_own(kind_of_bytes: type) -> None:
    parser = FrameParser()
    frame = framing.encode(framing.REQUEST, 1, 2, b"payload")
    buffer = bytearray(frame + frame[:-2])
    first = parser.feed(kind_of_bytes(buffer))
    buffer[:] = bytes(len(buffer))
    second = parser.feed(kind_of_bytes(frame[-2:]))
    assert first == second == [(framing.REQUEST, 1, 2, b"payload")]
    assert type(first[0][3]) is type(second[0][3]) is bytes


def test_a_large_claim_takes_memory_only_for_what_arrived() -> None:
    parser = FrameParser()
    tracemalloc.start()
    try:
        parser.feed(framing.HEADER.pack(framing.FRAME_BYTES_MAX, framing.REQUEST, 0, 1) + bytes(1000))
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
    assert parser.is_inside_frame


@pytest.mark.parametrize(
    ("length", "kind"),
    [(framing.FRAME_BYTES_MAX + 1, framing.REQUEST), (6, framing.REQUEST), (7, 0), (7, framing.END + 1)],
)
def test_a_header_that_is_none_of_ours_is_refused(length: int, kind: int) -> None:
    with pytest.raises(FrameError, match=f"kind {kind} and {length} bytes"):
        FrameParser().feed(struct.pack("<IBHI", length, kind, 0, 0))


def test_the_largest_payload_is_named_when_one_is_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "PAYLOAD_BYTES_MAX", 10)
    assert framing.encode(framing.REPLY, 0, 1, bytes(10)).endswith(bytes(10))
    with pytest.raises(FrameTooLargeError, match="11 bytes .* at most 10"):
        framing.encode(framing.REPLY, 0, 1, bytes(11))


@given(code=st.sampled_from(StatusCode), message=st.text())
def test_an_error_travels(code: StatusCode, message: str) -> None:
    [(kind, _, call_id, payload)] = FrameParser().feed(framing.encode_error(7, RpcError(code, message)))
    error = framing.decode_error(payload)
    assert (kind, call_id, error.code) == (framing.ERROR, 7, code)
    assert error.message == message.encode(errors="replace").decode()


@given(payload=st.binary())
def test_any_error_payload_is_an_error(payload: bytes) -> None:
    assert isinstance(framing.decode_error(payload), RpcError)


def test_a_method_is_named_once() -> None:
    numbers, paths = MethodNumbers(), MethodPaths()
    number, naming = numbers.number_of("/a.B/C")
    [(kind, named, _, payload)] = FrameParser().feed(naming)
    assert kind == framing.METHOD and paths.add(named, payload) == "/a.B/C" == paths.path_of(number)
    assert numbers.number_of("/a.B/C") == (number, b"")
    assert numbers.number_of("/a.B/D")[0] != number


def test_wrong_method_names_are_refused() -> None:
    paths = MethodPaths()
    paths.add(1, b"/a")
    for number, payload in ((1, b"/b"), (2, b"\xff"), (3, bytes(framing.METHOD_PATH_BYTES_MAX + 1))):
        with pytest.raises(FrameError):
            paths.add(number, payload)
    with pytest.raises(FrameError, match="method number 9"):
        paths.path_of(9)
    with pytest.raises(ValueError, match="can name"):
        MethodNumbers().number_of("x" * (framing.METHOD_PATH_BYTES_MAX + 1))
