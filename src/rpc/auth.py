"""Who gets in: the secret of a cluster, where it is found, and how both sides prove that they know it.
No I/O but reading its files.

TCP, before the first frame (N: 16 random bytes each; the proofs are HMAC-SHA256 under the secret, over a
label, the port that the client called and the server listens at, and both nonces):

    client  "RMF1" Nc
    server             Ns proof("server")
    client  proof("client")
    server             1                         or: 0, length u16, why not, and the end

The secret never crosses the wire, a recorded handshake opens nothing, and a server that does not know the
secret gets nothing from the client: not even by passing its handshake on to one that does, for that one
listens at another port. So who takes a port that another process has left, and that ours still call, is no
more than a stranger. The host is left out of it: it has several names, and behind another network others
still. So a tunnel to a port has to keep its number; and where services of one secret have the same port on
two hosts, who takes it on one can still pass on to the other what is said there. (A short secret can be
guessed offline from a server's proof: that is why the generated ones are 256 bits.) The handshakes are state
machines: `feed` takes what arrived and returns what to send; `state` says how it stands. They do not know
time: whoever owns the socket gives them HANDSHAKE_TIMEOUT_S. Unix sockets need none of it: the kernel says
who the peer is (check_peer_uid).

An empty secret means that there is no authentication. The bytes are the same, and a client must know it too:
one that has a secret does not go in, because a server without one proves nothing.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import hmac
import os
import secrets
import socket
import struct
from typing import Final, Protocol

from ray_mono.common.backoff import pause_after_s
from ray_mono.common.private_files import UntrustedPathError, open_file

MAGIC: Final = b"RMF1"
NONCE_SIZE: Final = 16
PROOF_SIZE: Final = 32
HANDSHAKE_TIMEOUT_S: Final = 5.0
# A port that strangers flood sends away some who only were not quick enough. So a client whose handshake is
# ended without a word begins another, on a new connection: so often in all.
# (framed_handshake.shaken, reactor_channel)
SHAKES_MAX: Final = 6
# The first pause before another handshake, and the longest.
SHAKE_AGAIN_S: Final = 0.02
SHAKE_AGAIN_MAX_S: Final = 0.32
REASON_BYTES_MAX: Final = 1024
SECRET_BYTES_MAX: Final = 4096

TOKEN_VARIABLE: Final = "RAY_MONO_AUTH_TOKEN"
TOKEN_PATH_VARIABLE: Final = "RAY_MONO_AUTH_TOKEN_PATH"
TOKEN_FILE_NAME: Final = "auth_token"
USER_TOKEN_PATH: Final = "~/.ray_mono/auth_token"

HOW_TO_PASS: Final = (
    f"pass the cluster's secret in the environment variable {TOKEN_VARIABLE}, "
    f"or in a file that {TOKEN_PATH_VARIABLE} names, or in {USER_TOKEN_PATH}, "
    "or as --redis-password (in Python: _redis_password=...); "
    f"on the head it is in the session directory's file {TOKEN_FILE_NAME}"
)

_ACCEPTED = b"\x01"
_REFUSED = b"\x00"


def pause_before_shake_s(ended: int) -> float:
    """Seconds to wait before the next handshake, after so many that were ended without a word."""
    return pause_after_s(ended, SHAKE_AGAIN_S, SHAKE_AGAIN_MAX_S)


class SecretNotFoundError(LookupError):
    """No place that may hold the cluster's secret has one."""


class SecretFileError(Exception):
    """A file that should hold the secret cannot be read, or is not to be trusted."""


class PeerRefusedError(Exception):
    """The process at the other end of a Unix socket belongs to another user."""


class HandshakeState(enum.Enum):
    PENDING = "pending"
    DONE = "done"
    REFUSED = "refused"


def _proof(secret: str, label: bytes, port: int, client_nonce: bytes, server_nonce: bytes) -> bytes:
    return hmac.digest(
        secret.encode(), label + struct.pack("<H", port) + client_nonce + server_nonce, "sha256"
    )


class _Handshake:
    """What both sides share: bytes that wait for the rest of a message, and how it stands."""

    def __init__(self) -> None:
        self.state = HandshakeState.PENDING
        self.reason = ""
        """Why it was refused, for people."""
        self._received = b""
        self._wanted = 0
        self._step = 0

    @property
    def missing_bytes(self) -> int:
        """How many bytes the next step still needs; who reads exactly these never reads into the frames.
        0 when it is over.
        """
        return max(0, self._wanted - len(self._received)) if self.state is HandshakeState.PENDING else 0

    @property
    def rest(self) -> bytes:
        """What arrived after the handshake: the first bytes of the frames. Empty until it is DONE."""
        return self._received if self.state is HandshakeState.DONE else b""

    def feed(self, data: bytes) -> bytes:
        """Takes what arrived, in whatever pieces.
        Returns what to send now (perhaps nothing), also when it was refused.
        """
        self._received += data
        answer = b""
        while self.state is HandshakeState.PENDING and len(self._received) >= self._wanted:
            message, self._received = self._received[: self._wanted], self._received[self._wanted :]
            answer += self._take(message)
        return answer

    def _take(self, message: bytes) -> bytes:
        raise NotImplementedError

    def _refuse(self, reason: str) -> None:
        self.state = HandshakeState.REFUSED
        self.reason = reason


class ClientHandshake(_Handshake):
    """The side that connects: sends start(), then answers what it is fed."""

    def __init__(self, secret: str, port: int) -> None:
        """port: that was called."""
        super().__init__()
        self._secret = secret
        self._port = port
        self._nonce = os.urandom(NONCE_SIZE)
        self._wanted = NONCE_SIZE + PROOF_SIZE

    def start(self) -> bytes:
        return MAGIC + self._nonce

    def _take(self, message: bytes) -> bytes:
        self._step += 1
        if self._step == 1:
            return self._take_proof(message)
        if self._step == 2:
            if message == _ACCEPTED:
                self.state = HandshakeState.DONE
            elif message == _REFUSED:
                self._wanted = 2
            else:
                self._refuse("the server answered with something else than this protocol")
        elif self._step == 3:
            self._wanted = min(struct.unpack("<H", message)[0], REASON_BYTES_MAX)
        else:
            self._refuse(message.decode(errors="replace") or "the server gave no reason")
        return b""

    def _take_proof(self, message: bytes) -> bytes:
        server_nonce, proof = message[:NONCE_SIZE], message[NONCE_SIZE:]
        if hmac.compare_digest(proof, _proof(self._secret, b"server", self._port, self._nonce, server_nonce)):
            self._wanted = 1
            return _proof(self._secret, b"client", self._port, self._nonce, server_nonce)
        if message.startswith(b"HTTP/"):
            self._refuse("the server speaks HTTP: this is not the port of a cluster")
        elif not self._secret:
            self._refuse(f"the server demands a secret and none was given: {HOW_TO_PASS}")
        elif hmac.compare_digest(proof, _proof("", b"server", self._port, self._nonce, server_nonce)):
            self._refuse(
                "the server uses no authentication and so cannot prove who it is; "
                "pass an empty secret to enter"
            )
        else:
            self._refuse(
                "the server has another secret than the one given "
                f"(or listens at another port than {self._port}, which was called: "
                f"a tunnel has to keep the number): {HOW_TO_PASS}"
            )
        return b""


class ServerHandshake(_Handshake):
    """The side that listens."""

    def __init__(self, secret: str, port: int) -> None:
        """port: where it listens."""
        super().__init__()
        self._secret = secret
        self._port = port
        self._nonce = os.urandom(NONCE_SIZE)
        self._client_nonce = b""
        self._wanted = len(MAGIC)

    @property
    def has_answered(self) -> bool:
        """Whether the client has said enough to be answered."""
        return self._step >= 2

    def _take(self, message: bytes) -> bytes:
        self._step += 1
        if self._step == 1:
            self._wanted = NONCE_SIZE
            # Says nothing: who does not speak the protocol cannot read the answer either.
            if message != MAGIC:
                self._refuse(f"the client began with {message!r}, not with {MAGIC!r}")
            return b""
        if self._step == 2:
            self._client_nonce = message
            self._wanted = PROOF_SIZE
            return self._nonce + _proof(self._secret, b"server", self._port, self._client_nonce, self._nonce)
        expected = _proof(self._secret, b"client", self._port, self._client_nonce, self._nonce)
        if not self._secret or hmac.compare_digest(message, expected):
            self.state = HandshakeState.DONE
            return _ACCEPTED
        self._refuse("the client does not know the secret")
        why = f"the secret is not the one of this cluster: {HOW_TO_PASS}".encode()[:REASON_BYTES_MAX]
        return _REFUSED + struct.pack("<H", len(why)) + why


class _SocketOption(Protocol):
    def getsockopt(self, level: int, option: int, buffer_size: int, /) -> bytes: ...


def peer_of(sock: _SocketOption) -> tuple[int, int]:
    """(process id, user id) of the process at the other end of a Unix socket, as it was when it connected or
    listened.
    """
    pid, uid, _ = struct.unpack(
        "3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    )
    return pid, uid


def check_peer_uid(sock: _SocketOption) -> None:
    """Raises PeerRefusedError unless the peer of a Unix socket is of our user, or root. Both sides ask it."""
    pid, uid = peer_of(sock)
    if uid not in (os.getuid(), 0):
        raise PeerRefusedError(f"process {pid} belongs to user id {uid}, not to ours ({os.getuid()})")


def secret_matches(secret: str, given: str) -> bool:
    """Constant-time comparison, for doors where the secret itself arrives.
    An empty secret lets everyone in.
    """
    return not secret or hmac.compare_digest(secret.encode(), given.encode(errors="replace"))


def generate_secret() -> str:
    return secrets.token_hex(32)


def write_secret(path: str, secret: str) -> None:
    """Writes the secret to a file that only this user can read (0600), at once whole;
    replaces what was there.
    """
    parent = os.path.dirname(path) or "."
    temporary = os.path.join(parent, f".{os.path.basename(path)}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(secret + "\n")
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def read_secret(path: str, follow: bool = False) -> str | None:
    """The secret in a file, or None where there is no such file. An empty file is the empty secret. follow:
    it may be a link.

    Raises SecretFileError for a file that cannot be read, belongs to another user than ours or root, can be
    written by everybody, or is too long to be one.
    """
    try:
        with open(open_file(path, follow=follow), "rb") as file:
            content = file.read(SECRET_BYTES_MAX + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UntrustedPathError as error:
        raise SecretFileError(f"the secret's file is not to be trusted: {error}") from error
    except OSError as error:
        reason = "it is a link" if error.errno == errno.ELOOP else error.strerror
        raise SecretFileError(f"the secret's file {path} cannot be read: {reason}") from error
    if len(content) > SECRET_BYTES_MAX:
        raise SecretFileError(
            f"the secret's file {path} has more than {SECRET_BYTES_MAX} bytes: that is no secret of ours"
        )
    try:
        return content.decode().strip()
    except UnicodeDecodeError:
        raise SecretFileError(f"the secret's file {path} is not text") from None


def _checked(given: str, where: str) -> str:
    """The secret that somebody gave, as it is where it goes: into a file and into variables of the
    environment, each of which is read without white space around it. Raises ValueError, which does not show
    it.
    """
    secret = given.strip()
    if given and not secret:
        raise ValueError(f"{where} is only white space; if everybody is to be let in, it has to be empty")
    try:
        size_bytes = len(secret.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{where} must be valid Unicode") from None
    if "\0" in secret:
        raise ValueError(f"{where} must not have a NUL in it")
    if size_bytes >= SECRET_BYTES_MAX:
        raise ValueError(f"{where} has {size_bytes:,} bytes, and must have less than {SECRET_BYTES_MAX:,}")
    return secret


def _not_blank(secret: str, path: str) -> str:
    """What a file of the user's holds. Raises SecretFileError where that is nothing:
    more likely a mistake than a door left open.
    """
    if not secret:
        raise SecretFileError(
            f"the secret's file {path} is blank; "
            f"if everybody is to be let in, set {TOKEN_VARIABLE} to the empty string"
        )
    return secret


def find_secret(argument: str | None, session_dir: str | None) -> str:
    """The cluster's secret: the first that is there of the argument, the environment's value, the file that
    the environment names, the session directory's file and the user's file. Empty means: no authentication;
    the user's files cannot say so.

    Raises SecretNotFoundError where nothing is there, ValueError for an argument or a value that can be none,
    and SecretFileError as read_secret does, also for a file that the environment names and that does not
    exist, and for one of the user's that is blank.
    """
    if argument is not None:
        return _checked(argument, "the password")
    value = os.environ.get(TOKEN_VARIABLE)
    if value is not None:
        return _checked(value, TOKEN_VARIABLE)
    path = os.environ.get(TOKEN_PATH_VARIABLE)
    if path:
        # A link there is its user's: so Kubernetes mounts secrets.
        secret = read_secret(path, follow=True)
        if secret is None:
            raise SecretFileError(f"{TOKEN_PATH_VARIABLE} names {path}, which does not exist")
        return _not_blank(secret, path)
    # Of our own making: an empty one is a cluster that lets everybody in.
    secret = read_secret(os.path.join(session_dir, TOKEN_FILE_NAME)) if session_dir else None
    if secret is not None:
        return secret
    user_path = os.path.expanduser(USER_TOKEN_PATH)
    # Where there is neither HOME nor an entry in the password file, "~" stays, and would be a directory of
    # whoever made it here.
    secret = read_secret(user_path) if os.path.isabs(user_path) else None
    if secret is not None:
        return _not_blank(secret, user_path)
    raise SecretNotFoundError(f"no secret was found; {HOW_TO_PASS}")
