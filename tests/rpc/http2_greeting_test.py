"""Who has the secret in the first call of an HTTP/2 connection."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_mono.rpc.auth import HandshakeState
from ray_mono.rpc.http2_greeting import (
    FRAMES_MAX,
    GREETING_BYTES_MAX,
    GUESSES_MAX,
    HTTP2_PREFACE,
    REFUSALS_MAX,
    Http2Greeting,
    OneAckLess,
)
from tests.rpc.http2_calls import (
    ACK,
    CONTINUATION,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    block,
    call,
    frame,
    text,
)

SECRET = "open sesame"
MINE = frame(SETTINGS, 0, 0, bytes.fromhex("000300000064"))
MY_ACK = frame(SETTINGS, ACK, 0)
# Every printable symbol after "Bearer ", by a coder that is not ours (hpack 4.2).
PRINTABLE = bytes(range(0x20, 0x7F)).decode()
PRINTABLE_IN_CODE = bytes.fromhex(
    "ba51d85b1453f8fe7febff2afc7fafebfbf9ff7f4b2ec002265a6dc75e7ee7dfffc83feffcffd4376f5fc187"
    "163c997367d1a756bd9b776fe1c797e73fdffdffff0ffe7ff917ffd1c6490b2cd39ba75a29a8f5f6b109b7bf"
    "8f3ebdfffeff9ffefff7"
)


def greet(said: bytes, secret: str = SECRET, piece: int = 1 << 20) -> tuple[Http2Greeting, bytes]:
    greeting, answer = Http2Greeting(secret), b""
    for at in range(0, len(said), piece):
        answer += greeting.feed(said[at : at + piece])
    return greeting, answer


@pytest.mark.parametrize("piece", [1, 7, 9, 4096])
def test_a_call_with_the_secret_gets_in_and_what_was_said_is_passed_on_but_for_one_ack(piece: int) -> None:
    said = HTTP2_PREFACE + MINE + MY_ACK + call(SECRET)
    greeting, answer = greet(said, piece=piece)
    assert greeting.state is HandshakeState.DONE and answer == frame(SETTINGS, 0, 0)
    assert greeting.take_rest() == HTTP2_PREFACE + MINE + call(SECRET) and greeting.acks.is_done
    assert greeting.missing_bytes == 0


def test_a_client_that_does_not_wait_for_our_settings_acknowledges_them_later() -> None:
    greeting, _ = greet(HTTP2_PREFACE + MINE + call(SECRET))
    assert greeting.take_rest() == HTTP2_PREFACE + MINE + call(SECRET)
    later = frame(0, 0, 1, b"message") + MY_ACK + frame(0, 0, 1, b"more") + MY_ACK
    passed = b"".join(greeting.acks.feed(later[at : at + 1]) for at in range(len(later)))
    assert passed == frame(0, 0, 1, b"message") + frame(0, 0, 1, b"more") + MY_ACK


@pytest.mark.parametrize("secret", ["wrong", "open sesam", "open sesame!", ""])
def test_a_call_without_the_secret_is_refused_in_words_that_grpc_understands(secret: str) -> None:
    greeting, answer = greet(HTTP2_PREFACE + MINE + call(secret, stream=5))
    assert greeting.state is HandshakeState.REFUSED and "has not the secret" in greeting.reason
    assert b"grpc-status" + text(b"16") in answer and b"authorization: Bearer <secret>" in answer
    # GOAWAY; what the client sent before it read that is refused as well.
    assert answer.endswith(frame(7, 0, 0, b"\x7f\xff\xff\xff" + bytes(4)))
    later = b"".join(call(secret, stream) for stream in range(7, 407, 2))
    said = b"".join(greeting.feed(later[at : at + 100]) for at in range(0, len(later), 100))
    assert said.count(text(b"grpc-status") + text(b"16")) == REFUSALS_MAX - 1
    assert greeting.is_exhausted


def test_a_client_of_several_calls_gets_in_with_all_of_them_if_one_has_the_secret() -> None:
    """gRPC sends at once what was called while it connected, and refuses those without it by itself."""
    said = MINE + call("wrong") + call("", stream=3) + call(SECRET, stream=5)
    greeting, answer = greet(HTTP2_PREFACE + said)
    assert greeting.state is HandshakeState.DONE and answer == frame(SETTINGS, 0, 0)
    assert greeting.take_rest() == HTTP2_PREFACE + said


def test_a_call_with_the_secret_on_a_connection_that_was_refused_is_sent_elsewhere() -> None:
    greeting, _ = greet(HTTP2_PREFACE + MINE + call("wrong"))
    refused_stream = (7).to_bytes(4, "big")
    assert b"grpc-status" in greeting.feed(call("wrong", stream=3))
    assert greeting.feed(call(SECRET, stream=5)) == frame(RST_STREAM, 0, 5, refused_stream)
    # The next call may stand in HPACK's table, where its header was put by the last one.
    assert greeting.feed(call("wrong", stream=7)) == frame(RST_STREAM, 0, 7, refused_stream)
    assert greeting.state is HandshakeState.REFUSED


def test_where_there_is_no_secret_every_call_gets_in() -> None:
    assert greet(HTTP2_PREFACE + MINE + call("anything"), secret="")[0].state is HandshakeState.DONE


@pytest.mark.parametrize(
    "headers",
    [
        b"\x0f\x08" + text(b"Bearer abc"),
        b"\x57" + text(b"Bearer abc"),
        b"\x00" + text(b"authorization") + text(b"Bearer abc"),
        b"\x57" + text(b"Bearer no") + b"\x57" + text(b"Bearer abc"),
        # As Go and nghttp2 write it: "Bearer abc" in Huffman code.
        b"\x57\x87" + bytes.fromhex("ba 51 d8 5b 14 1c 64"),
    ],
    ids=["known name", "to be remembered", "a name", "the second of two", "in code"],
)
def test_the_secret_is_found_however_its_header_is_written(headers: bytes) -> None:
    said = HTTP2_PREFACE + MINE + frame(HEADERS, END_HEADERS, 1, b"\x83\x86" + headers)
    assert greet(said, "abc")[0].state is HandshakeState.DONE
    for other in ("abd", "ab", "abcd", "bc"):
        assert greet(said, other)[0].state is HandshakeState.REFUSED


@pytest.mark.parametrize(
    ("secret", "value"),
    [
        (PRINTABLE, bytes((0x80 | len(PRINTABLE_IN_CODE),)) + PRINTABLE_IN_CODE),
        # 307 bytes: 127, and 180 in groups of seven bits, the low ones first.
        ("x" * 300, bytes((0x7F, 0x80 | 180 & 0x7F, 180 >> 7)) + b"Bearer " + b"x" * 300),
        ("öffne", text("Bearer öffne".encode())),
    ],
    ids=["all printable symbols", "a long one", "others"],
)
def test_any_secret_is_found(secret: str, value: bytes) -> None:
    said = HTTP2_PREFACE + frame(HEADERS, END_HEADERS, 1, b"\x57" + value)
    assert greet(said, secret)[0].state is HandshakeState.DONE
    assert greet(said, secret[:-1] + "?")[0].state is HandshakeState.REFUSED


def test_a_call_has_few_guesses() -> None:
    for guesses, state in ((GUESSES_MAX, HandshakeState.DONE), (GUESSES_MAX + 1, HandshakeState.REFUSED)):
        headers = [b"\x57" + text(f"Bearer {guess}".encode()) for guess in ["no"] * (guesses - 1) + ["abc"]]
        said = frame(HEADERS, END_HEADERS, 1, b"".join(headers))
        assert greet(HTTP2_PREFACE + said, "abc")[0].state is state


def test_headers_may_be_padded_prioritized_and_continued() -> None:
    whole = block(SECRET)
    padded = b"\x03" + bytes(5) + whole[:20] + bytes(3)
    said = frame(HEADERS, PADDED | PRIORITY | END_STREAM, 1, padded)
    said += frame(CONTINUATION, 0, 1, whole[20:30]) + frame(CONTINUATION, END_HEADERS, 1, whole[30:])
    assert greet(HTTP2_PREFACE + said)[0].state is HandshakeState.DONE


@pytest.mark.parametrize(
    "said",
    [
        b"PRI * HTTP/1.1\r\n\r\n",
        HTTP2_PREFACE + frame(HEADERS, 0, 1, b"\x83") + MINE,
        HTTP2_PREFACE + frame(HEADERS, END_HEADERS | PADDED, 1),
    ],
    ids=["HTTP/1", "interrupted", "padded nothing"],
)
def test_what_is_no_http2_is_refused(said: bytes) -> None:
    assert greet(said)[0].state is HandshakeState.REFUSED


def test_who_says_much_and_never_calls_is_refused() -> None:
    many = HTTP2_PREFACE + MINE * FRAMES_MAX
    assert greet(many[:-1])[0].missing_bytes > 0
    assert greet(many)[0].state is HandshakeState.REFUSED and greet(many)[0].is_exhausted
    long = HTTP2_PREFACE + frame(SETTINGS, 0, 0, bytes(GREETING_BYTES_MAX))
    assert greet(long[: GREETING_BYTES_MAX - 1])[0].missing_bytes == 1
    assert greet(long[:GREETING_BYTES_MAX])[0].state is HandshakeState.REFUSED


@pytest.mark.parametrize(
    "said",
    [
        frame(HEADERS, END_HEADERS, 1, b"\xbe" * 12000),
        frame(HEADERS, END_HEADERS, 1, b"\x20" * 12000),
        frame(HEADERS, END_HEADERS, 1, b"\x00\x01a\x01b" * 2400),
        frame(HEADERS, END_HEADERS, 1, b"\x57\x07Bearer " * 1300),
        frame(CONTINUATION, 0, 1) * 1300,
        frame(6, 0, 0) * 1300,
        call("wrong") + frame(6, 0, 0) * 14000,
        call("wrong") + frame(HEADERS, END_HEADERS, 3, b"\xbe" * 8000) * 16,
    ],
    ids=[
        "indices",
        "sizes",
        "names",
        "guesses",
        "continued",
        "frames",
        "frames afterwards",
        "headers afterwards",
    ],
)
def test_whatever_a_stranger_says_takes_few_steps_of_ours(said: bytes) -> None:
    """Thousands of them may stand before a rightful client."""
    steps = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal steps
        steps += event in ("call", "c_call")

    greeting = Http2Greeting(SECRET)
    greet(HTTP2_PREFACE + call(SECRET))  # what is made once
    sys.setprofile(count)
    try:
        greeting.feed(HTTP2_PREFACE + said)
    finally:
        sys.setprofile(None)
    assert greeting.state is HandshakeState.REFUSED and steps < 16 * FRAMES_MAX


@given(said=st.binary(max_size=200), piece=st.integers(1, 50))
def test_nobody_gets_in_by_chance(said: bytes, piece: int) -> None:
    for data in (said, HTTP2_PREFACE + said, HTTP2_PREFACE + frame(HEADERS, END_HEADERS, 1, said)):
        assert greet(data, piece=piece)[0].state is not HandshakeState.DONE


@given(st.lists(st.sampled_from([MINE, call("x"), frame(0, 0, 1, bytes(20))])), st.integers(1, 40))
def test_frames_are_passed_on_as_they_came(frames: list[bytes], piece: int) -> None:
    said, acks = b"".join(frames), OneAckLess()
    sent = said + MY_ACK + said
    assert b"".join(acks.feed(sent[at : at + piece]) for at in range(0, len(sent), piece)) == said * 2
