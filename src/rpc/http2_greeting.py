"""The beginning of an HTTP/2 connection, up to the first call: whether it has the secret.
A state machine of bytes, without I/O.

gRPC's work for a connection, and the memory that it keeps for good, are dear; so a stranger never gets to it.
What one says is read here, and of HTTP/2 no more is understood than this takes:

    client  preface, SETTINGS, …              a client may wait for ours before it calls
    server  SETTINGS
    client  …, HEADERS (CONTINUATION, …)      the first call, with or without `authorization: Bearer <secret>`
    server  nothing: it is in                 or: that call's refusal, as gRPC words it, and GOAWAY

What a client that is in has said is passed on from its first byte (`rest`), but for its ACK of our SETTINGS:
whoever takes it over sends some too, and must be acknowledged these only (`OneAckLess`). The first call
decides for the connection, with what came right behind it: gRPC sends at once what was called while it
connected. Where that has not the secret, further calls are refused as well, until the client has read GOAWAY
and makes another connection. One that has the secret is told that nothing was done for it, which gRPC repeats
elsewhere, and so is what follows it: HPACK may leave out what a call before it said.

Thousands of strangers may stand before a rightful client, who waits for all that is done for them. So headers
are not decoded: 12 KiB that mean harm take the library `hpack` up to 22 ms, and took a reader of ours 5; a
plain refusal takes 0.01. The secret is looked for among their bytes, in both forms that a text has there: as
it is, and in HPACK's Huffman code. Whoever can write it knows it, whichever header it is in; gRPC reads the
header itself. Frames are read up to a number.
"""

from __future__ import annotations

import functools
import hmac
from typing import Final
from urllib.parse import quote

from ray_mono.rpc.auth import HOW_TO_PASS, HandshakeState

# The first bytes of HTTP/2, which gRPC speaks.
HTTP2_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
BEARER: Final = "Bearer "
HOW_TO_CALL: Final = (
    f"send the metadata 'authorization: {BEARER}<secret>' with the cluster's secret: {HOW_TO_PASS}"
)
# Of a client before its first call is understood; gRPC takes 8 KiB of metadata.
GREETING_BYTES_MAX: Final = 12 << 10

# So many frames of a connection are read, each of which costs a microsecond.
FRAMES_MAX: Final = 128
# So many calls of a connection are refused; then it is of no more use.
REFUSALS_MAX: Final = 16
# So many texts of a call's headers are compared with the secret.
GUESSES_MAX: Final = 16

_HEAD_BYTES = 9
_HEADERS, _RST_STREAM, _SETTINGS, _GOAWAY, _CONTINUATION = 1, 3, 4, 7, 9
_ACK, _END_STREAM, _END_HEADERS, _PADDED, _PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
# HPACK's static table.
_STATUS_200, _CONTENT_TYPE = 8, 31
_REFUSED_STREAM = (7).to_bytes(4, "big")
_GRPC_UNAUTHENTICATED = b"16"


class _MalformedError(Exception):
    pass


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


_OUR_SETTINGS = _frame(_SETTINGS, 0, 0)


class Http2Greeting:
    """The server's side, as auth.ServerHandshake is of the other protocol."""

    def __init__(self, secret: str) -> None:
        self.state = HandshakeState.PENDING
        self.reason = ""
        self._secret = secret
        self._said = b""
        self._at = 0
        self._has_answered = False
        # The headers so far, and their stream, while they are continued.
        self._block: bytes | None = None
        self._stream = 0
        self._frames = 0
        self._refusals = 0
        self._has_shown_secret = False
        self.acks = OneAckLess()
        """What goes on taking our ACK out, when the client is in."""

    @property
    def missing_bytes(self) -> int:
        """How many bytes may be read now; 0 when it is over."""
        return GREETING_BYTES_MAX - len(self._said) if self.state is HandshakeState.PENDING else 0

    @property
    def is_exhausted(self) -> bool:
        """Whether it is of no more use."""
        return self._refusals >= REFUSALS_MAX or self._frames >= FRAMES_MAX

    def take_rest(self) -> bytes:
        """What is to be passed on of a client that is in. Once."""
        return HTTP2_PREFACE + self.acks.feed(self._said[len(HTTP2_PREFACE) :])

    def feed(self, data: bytes) -> bytes:
        """Takes what arrived, in whatever pieces.
        Returns what to send now (perhaps nothing), also when it was refused.
        """
        self._said += data
        answer = b""
        if not self._has_answered:
            if not HTTP2_PREFACE.startswith(self._said[: len(HTTP2_PREFACE)]):
                self._refuse("it begins like HTTP/2 and is not")
                return b""
            if len(self._said) < len(HTTP2_PREFACE):
                return b""
            self._at, self._has_answered, answer = len(HTTP2_PREFACE), True, _OUR_SETTINGS
        try:
            answer += self._take_frames()
        except _MalformedError as error:
            self._refuse(f"it is no HTTP/2 of a gRPC client: {error}")
        is_long = len(self._said) >= GREETING_BYTES_MAX or self.is_exhausted
        if self.state is HandshakeState.PENDING and is_long:
            self._refuse("it says much and does not call")
        elif self.state is HandshakeState.REFUSED:
            # Of a frame that is not whole the rest is still to come.
            self._said, self._at = self._said[self._at :], 0
        return answer

    def _refuse(self, reason: str) -> None:
        self.state = HandshakeState.REFUSED
        self.reason = reason

    def _take_frames(self) -> bytes:
        answer = b""
        while (
            self.state is not HandshakeState.DONE
            and not self.is_exhausted
            and len(self._said) >= self._at + _HEAD_BYTES
        ):
            start = self._at + _HEAD_BYTES
            end = start + int.from_bytes(self._said[self._at : self._at + 3], "big")
            if len(self._said) < end:
                break
            kind, flags = self._said[self._at + 3 : self._at + 5]
            stream = int.from_bytes(self._said[self._at + 5 : start], "big") & 0x7FFFFFFF
            self._at = end
            self._frames += 1
            if kind == _HEADERS and self._block is None:
                self._block, self._stream = _block_of(self._said[start:end], flags), stream
            elif kind == _CONTINUATION and self._block is not None and stream == self._stream:
                self._block += self._said[start:end]
            elif self._block is not None:
                raise _MalformedError("its headers are interrupted")
            else:
                continue  # SETTINGS, WINDOW_UPDATE, PING: for gRPC
            if flags & _END_HEADERS:
                answer += self._decide(self._block)
                self._block = None
        return answer

    def _decide(self, block: bytes) -> bytes:
        said = block if self.state is HandshakeState.REFUSED else block + self._said[self._at :]
        self._has_shown_secret |= not self._secret or _contains(said, self._secret)
        if self.state is HandshakeState.REFUSED:
            return self._refusal()
        if self._has_shown_secret:
            self.state = HandshakeState.DONE
            return b""
        self._refuse("its first call has not the secret")
        return (
            _frame(_SETTINGS, _ACK, 0)
            + self._refusal()
            + _frame(_GOAWAY, 0, 0, b"\x7f\xff\xff\xff" + bytes(4))
        )

    def _refusal(self) -> bytes:
        """Of the call whose headers came last."""
        self._refusals += 1
        if self._has_shown_secret:
            return _frame(_RST_STREAM, 0, self._stream, _REFUSED_STREAM)
        # RST_STREAM: its message is not wanted.
        return _frame(_HEADERS, _END_STREAM | _END_HEADERS, self._stream, _refusal_headers()) + _frame(
            _RST_STREAM, 0, self._stream, bytes(4)
        )


@functools.cache
def _refusal_headers() -> bytes:
    # Names as they are, without a place in the table.
    return bytes((0x80 | _STATUS_200,)) + b"".join(
        (
            bytes((0x0F, _CONTENT_TYPE - 0x0F)) + _string(b"application/grpc"),
            b"\x00" + _string(b"grpc-status") + _string(_GRPC_UNAUTHENTICATED),
            b"\x00" + _string(b"grpc-message") + _string(quote(HOW_TO_CALL, safe=" '<>:,()=*/").encode()),
        )
    )


class OneAckLess:
    """What a client says after the preface, without its first ACK of SETTINGS."""

    def __init__(self) -> None:
        self.is_done = False
        self._head = b""
        self._rest = 0
        """What is still to come of a frame that is passed on."""

    def feed(self, data: bytes) -> bytes:
        passed, at = b"", 0
        while at < len(data) and not self.is_done:
            step = min(self._rest, len(data) - at)
            passed += data[at : at + step]
            self._rest -= step
            at += step
            head = data[at : at + _HEAD_BYTES - len(self._head)]
            self._head += head
            at += len(head)
            if len(self._head) == _HEAD_BYTES:
                self._rest = int.from_bytes(self._head[:3], "big")
                if self._head[3] == _SETTINGS and self._head[4] & _ACK:
                    self.is_done = True
                else:
                    passed += self._head
                self._head = b""
        return passed + data[at:]


# ---------------------------------------------------------------- HPACK (RFC 7541)


def _block_of(payload: bytes, flags: int) -> bytes:
    """The headers in a HEADERS frame."""
    padding = 0
    if flags & _PADDED:
        if not payload:
            raise _MalformedError("padding of nothing")
        padding, payload = payload[0], payload[1:]
    if flags & _PRIORITY:
        payload = payload[5:]
    return payload[: len(payload) - padding] if padding else payload


def _string(text: bytes, flag: int = 0) -> bytes:
    """With its length before it. flag: 0x80 for one in Huffman code."""
    size = len(text)
    if size < 0x7F:
        return bytes((flag | size,)) + text
    head, size = bytes((flag | 0x7F,)), size - 0x7F
    while size >= 0x80:
        head += bytes((size & 0x7F | 0x80,))
        size >>= 7
    return head + bytes((size,)) + text


# The printable symbols of its Huffman code, by their codes' lengths. The code is canonical: these say all.
_SYMBOLS_BY_BITS = {
    5: b"012aceiost",
    6: b" %-./3456789=A_bdfghlmnpru",
    7: b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz",
    8: b"&*,;XZ",
    10: b'!"()?',
    11: b"'+|",
    12: b"#>",
    13: b"\x00$@[]~",
    14: b"^}",
    15: b"<`{",
    19: b"\\",
}


@functools.cache
def _codes() -> dict[int, tuple[int, int]]:
    codes, code, before = {}, 0, 0
    for bits, symbols in _SYMBOLS_BY_BITS.items():
        code <<= bits - before
        before = bits
        for symbol in symbols:
            codes[symbol] = code, bits
            code += 1
    return codes


def _in_code(text: bytes) -> bytes:
    number, size = 0, 0
    for symbol in text:
        code, bits = _codes()[symbol]
        number, size = number << bits | code, size + bits
    padding = -size % 8
    number = number << padding | (1 << padding) - 1
    return number.to_bytes((size + padding) // 8, "big")


@functools.lru_cache(maxsize=4)
def _forms(secret: str) -> list[tuple[bytes, bytes]]:
    """How the secret can stand among headers, after BEARER:
    each with how BEARER stands there, which everybody knows.
    """
    text, bearer = f"{BEARER}{secret}".encode(), BEARER.encode()
    forms = [(_string(text), bearer)]
    # What has other symbols than printable ones is never coded here.
    # BEARER fills five bytes of code to the bit.
    if all(symbol in _codes() for symbol in text):
        forms.append((_string(_in_code(text), 0x80), _in_code(bearer)))
    return forms


def _contains(block: bytes, secret: str) -> bool:
    """Takes the same time whatever of the secret is right."""
    guesses: list[bool] = []
    for form, bearer in _forms(secret):
        before, at = form.index(bearer), block.find(bearer)
        while at >= 0 and len(guesses) < GUESSES_MAX:
            start = max(0, at - before)
            guesses.append(hmac.compare_digest(block[start : start + len(form)], form))
            at = block.find(bearer, at + 1)
    return any(guesses)
