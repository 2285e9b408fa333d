"""The handshake lets in who knows the secret and nobody else, and the secret is found where it should be."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_mono.rpc import auth
from ray_mono.rpc.auth import ClientHandshake, HandshakeState, ServerHandshake

PORT = 6379


def shake(client: ClientHandshake, server: ServerHandshake) -> None:
    """Carries the bytes until nothing more is said."""
    to_server = client.start()
    while to_server:
        to_client = server.feed(to_server)
        to_server = client.feed(to_client)


@pytest.fixture
def no_secret_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home directory without a secret, and an environment without one."""
    monkeypatch.delenv(auth.TOKEN_VARIABLE, raising=False)
    monkeypatch.delenv(auth.TOKEN_PATH_VARIABLE, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("secret", ["open sesame", "", "šifra"])
def test_the_same_secret_opens(secret: str) -> None:
    client, server = ClientHandshake(secret, PORT), ServerHandshake(secret, PORT)
    shake(client, server)
    assert client.state is server.state is HandshakeState.DONE
    assert client.missing_bytes == server.missing_bytes == 0 and client.rest == server.rest == b""


@pytest.mark.parametrize(
    ("given_secret", "secret", "reason"),
    [("a", "b", "another secret"), ("", "b", "none was given"), ("a", "", "no authentication")],
)
def test_a_client_with_another_secret_is_told_what_to_do_and_proves_nothing(
    given_secret: str, secret: str, reason: str
) -> None:
    client, server = ClientHandshake(given_secret, PORT), ServerHandshake(secret, PORT)
    proof = client.feed(server.feed(client.start()))
    assert proof == b"" and client.state is HandshakeState.REFUSED and reason in client.reason
    if secret:
        assert "--redis-password" in client.reason and auth.TOKEN_VARIABLE in client.reason


def test_a_proof_that_is_wrong_or_replayed_is_refused_with_the_reason() -> None:
    client, server = ClientHandshake("s", PORT), ServerHandshake("s", PORT)
    hello = client.start()
    recorded = client.feed(server.feed(hello))
    for proof in (recorded, bytes(auth.PROOF_SIZE)):
        other = ServerHandshake("s", PORT)
        other.feed(hello)
        refusal = other.feed(proof)
        assert other.state is HandshakeState.REFUSED and other.rest == b""
        assert client.feed(refusal) == b"" and client.state is HandshakeState.REFUSED
        assert "not the one of this cluster" in client.reason
        client = ClientHandshake("s", PORT)
        client._wanted, client._step = 1, 1


def test_a_proof_with_any_one_bit_flipped_is_refused() -> None:
    """The proofs of both sides, from the first bit to the last."""
    for bit in range(8 * auth.PROOF_SIZE):
        mask = (1 << bit).to_bytes(auth.PROOF_SIZE, "little")
        client, server = ClientHandshake("s", PORT), ServerHandshake("s", PORT)
        proof = client.feed(server.feed(client.start()))
        server.feed(bytes(one ^ other for one, other in zip(proof, mask, strict=True)))
        assert server.state is HandshakeState.REFUSED, f"bit {bit} of the client's proof"
        client, server = ClientHandshake("s", PORT), ServerHandshake("s", PORT)
        answer = server.feed(client.start())
        nonce, proof = answer[: auth.NONCE_SIZE], answer[auth.NONCE_SIZE :]
        sent = client.feed(nonce + bytes(one ^ other for one, other in zip(proof, mask, strict=True)))
        assert client.state is HandshakeState.REFUSED and sent == b"", f"bit {bit} of the server's proof"


def test_a_server_that_reflects_the_clients_bytes_proves_nothing() -> None:
    client = ClientHandshake("s", PORT)
    nonce = client.start()[len(auth.MAGIC) :]
    client.feed(nonce + bytes(auth.PROOF_SIZE))
    assert client.state is HandshakeState.REFUSED


def test_a_handshake_that_is_passed_on_to_another_port_opens_neither_end() -> None:
    """Who takes a port that ours call, without the secret, has a service at another port answer."""
    client, server = ClientHandshake("s", PORT), ServerHandshake("s", PORT + 1)
    proof = client.feed(server.feed(client.start()))
    assert proof == b"" and client.state is HandshakeState.REFUSED and f"port than {PORT}" in client.reason
    # As if the client did not look.
    client, here, server = (
        ClientHandshake("s", PORT),
        ServerHandshake("s", PORT),
        ServerHandshake("s", PORT + 1),
    )
    hello = client.start()
    answer = server.feed(hello)
    here._nonce = server._nonce
    proof = client.feed(here.feed(hello))
    assert answer[: auth.NONCE_SIZE] == server._nonce and len(proof) == auth.PROOF_SIZE
    server.feed(proof)
    assert server.state is HandshakeState.REFUSED


def test_an_empty_secret_lets_everyone_in() -> None:
    server = ServerHandshake("", PORT)
    server.feed(auth.MAGIC + bytes(auth.NONCE_SIZE))
    assert server.feed(bytes(auth.PROOF_SIZE)) == b"\x01" and server.state is HandshakeState.DONE


@given(cuts=st.lists(st.integers(1, 20), max_size=40), rest=st.binary(max_size=50))
def test_any_cutting_of_the_handshake_is_the_same_and_the_rest_is_kept(cuts: list[int], rest: bytes) -> None:
    client, server = ClientHandshake("s", PORT), ServerHandshake("s", PORT)

    def feed_in_pieces(handshake: ClientHandshake | ServerHandshake, data: bytes) -> bytes:
        answer = b""
        for cut in cuts:
            answer += handshake.feed(data[:cut])
            data = data[cut:]
        return answer + handshake.feed(data)

    proof = feed_in_pieces(client, feed_in_pieces(server, client.start()))
    verdict = feed_in_pieces(server, proof + rest)
    feed_in_pieces(client, verdict + rest)
    assert client.state is server.state is HandshakeState.DONE
    assert client.rest == server.rest == rest


def test_reading_only_the_missing_bytes_never_takes_a_frames() -> None:
    client, server = ClientHandshake("s", PORT), ServerHandshake("s", PORT)
    to_server = client.start()
    assert server.missing_bytes == len(auth.MAGIC)
    while client.state is HandshakeState.PENDING:
        to_client = b""
        while to_server:
            size = server.missing_bytes
            to_client += server.feed(to_server[:size])
            to_server = to_server[size:]
        while to_client:
            size = client.missing_bytes
            to_server += client.feed(to_client[:size])
            to_client = to_client[size:]
    assert client.state is server.state is HandshakeState.DONE


@given(data=st.binary(max_size=300))
def test_garbage_never_opens(data: bytes) -> None:
    client, server = ClientHandshake("s", PORT), ServerHandshake("s", PORT)
    for side in (client, server):
        side.feed(data)
        assert side.state is not HandshakeState.DONE
        assert side.state is HandshakeState.PENDING or side.reason


def test_a_web_servers_answer_is_recognised() -> None:
    client = ClientHandshake("s", PORT)
    client.feed(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    assert "HTTP" in client.reason


def test_the_kernel_tells_the_peer_of_a_unix_socket() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert auth.peer_of(one) == (os.getpid(), os.getuid())
        auth.check_peer_uid(one)


def test_another_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "peer_of", lambda sock: (12, os.getuid() + 1))
    one, other = socket.socketpair()
    with one, other, pytest.raises(auth.PeerRefusedError, match="process 12"):
        auth.check_peer_uid(one)


def test_the_secret_is_looked_for_in_the_stated_order(
    no_secret_around: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = no_secret_around / "session"
    user = no_secret_around / ".ray_mono"
    session.mkdir()
    user.mkdir()
    with pytest.raises(auth.SecretNotFoundError, match=auth.TOKEN_VARIABLE):
        auth.find_secret(None, str(session))
    auth.write_secret(str(user / "auth_token"), "of the user")
    assert auth.find_secret(None, str(session)) == auth.find_secret(None, None) == "of the user"
    auth.write_secret(str(session / "auth_token"), "of the session")
    assert auth.find_secret(None, str(session)) == "of the session"
    auth.write_secret(str(session / "other"), "of the path")
    monkeypatch.setenv(auth.TOKEN_PATH_VARIABLE, str(session / "other"))
    assert auth.find_secret(None, str(session)) == "of the path"
    monkeypatch.setenv(auth.TOKEN_VARIABLE, "of the environment")
    assert auth.find_secret(None, str(session)) == "of the environment"
    assert auth.find_secret("of the argument", str(session)) == "of the argument"


def test_white_space_around_a_secret_is_not_of_it_wherever_it_stands(
    no_secret_around: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = " secret\n"
    auth.write_secret(str(no_secret_around / "auth_token"), given)
    found = [auth.find_secret(given, None), auth.find_secret(None, str(no_secret_around))]
    monkeypatch.setenv(auth.TOKEN_VARIABLE, given)
    assert [*found, auth.find_secret(None, None)] == ["secret"] * 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (" \n", "only white space; if everybody is to be let in, it has to be empty"),
        ("hidden\udce9", "valid Unicode"),
        ("hidden" * 1000, "6,000 bytes, and must have less than 4,096"),
    ],
)
def test_what_can_be_no_secret_is_refused_by_its_place_and_not_shown(
    given: str, message: str, no_secret_around: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=f"the password.*{message}") as refused:
        auth.find_secret(given, None)
    monkeypatch.setenv(auth.TOKEN_VARIABLE, given)
    with pytest.raises(ValueError, match=f"{auth.TOKEN_VARIABLE}.*{message}"):
        auth.find_secret(None, None)
    assert "hidden" not in str(refused.value)
    with pytest.raises(ValueError, match="NUL"):
        auth.find_secret("a\0b", None)


def test_an_empty_secret_is_a_choice_wherever_it_stands(
    no_secret_around: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auth.write_secret(str(no_secret_around / "auth_token"), "")
    assert auth.find_secret("", str(no_secret_around)) == ""
    assert auth.find_secret(None, str(no_secret_around)) == ""
    auth.write_secret(str(no_secret_around / "auth_token"), "s")
    monkeypatch.setenv(auth.TOKEN_VARIABLE, "")
    assert auth.find_secret(None, str(no_secret_around)) == ""


@pytest.mark.parametrize("content", ["", " \n"])
def test_a_blank_file_of_the_users_is_a_mistake_and_no_open_door(
    content: str, no_secret_around: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = no_secret_around / ".ray_mono" / "auth_token"
    users.parent.mkdir()
    users.write_text(content)
    with pytest.raises(auth.SecretFileError, match=f"{users} is blank"):
        auth.find_secret(None, str(no_secret_around))
    named = no_secret_around / "named"
    named.write_text(content)
    monkeypatch.setenv(auth.TOKEN_PATH_VARIABLE, str(named))
    with pytest.raises(auth.SecretFileError, match=f"{named} is blank.*{auth.TOKEN_VARIABLE} to the empty"):
        auth.find_secret(None, None)


def test_a_secret_is_written_as_it_is_read_whatever_the_locale(tmp_path: Path) -> None:
    code = f"from ray_mono.rpc import auth; auth.write_secret({str(tmp_path / 'auth_token')!r}, 'gr\\xfcn')"
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    path = os.pathsep.join(item for item in sys.path if item)
    subprocess.run([sys.executable, "-c", code], env={**env, "PYTHONPATH": path}, check=True)
    assert auth.read_secret(str(tmp_path / "auth_token")) == "grün"


def test_a_secrets_file_is_for_its_user_alone_and_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "auth_token"
    secret = auth.generate_secret()
    assert secret != auth.generate_secret()
    path.write_text("older")
    auth.write_secret(str(path), secret)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert auth.read_secret(str(path)) == secret and os.listdir(tmp_path) == ["auth_token"]


def test_a_file_that_cannot_hold_the_secret_is_named(
    no_secret_around: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(auth.TOKEN_PATH_VARIABLE, str(no_secret_around / "missing"))
    with pytest.raises(auth.SecretFileError, match="missing, which does not exist"):
        auth.find_secret(None, None)
    (no_secret_around / "long").write_bytes(bytes(auth.SECRET_BYTES_MAX + 1))
    (no_secret_around / "binary").write_bytes(b"\xff\xfe")
    for name in ("long", "binary", "."):
        with pytest.raises(auth.SecretFileError, match=str(no_secret_around)):
            auth.read_secret(str(no_secret_around / name))


def test_a_secret_that_arrives_is_compared() -> None:
    assert auth.secret_matches("s", "s") and auth.secret_matches("", "anything")
    assert not auth.secret_matches("s", "") and not auth.secret_matches("s", "S")
    secret = auth.generate_secret()
    assert auth.secret_matches(secret, secret)
    for number, letter in enumerate(secret):
        other = "0" if letter != "0" else "1"
        assert not auth.secret_matches(secret, secret[:number] + other + secret[number + 1 :])
        assert not auth.secret_matches(secret, secret[:number])
    assert not auth.secret_matches(secret, secret + "0")


def test_where_there_is_no_home_the_secret_is_not_looked_for_below_the_current_directory(
    no_secret_around: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (no_secret_around / "~" / ".ray_mono").mkdir(parents=True)
    auth.write_secret(
        str(no_secret_around / "~" / ".ray_mono" / "auth_token"), "of whoever made this directory"
    )
    monkeypatch.chdir(no_secret_around)
    monkeypatch.delenv("HOME")
    # As for a user id that the password file does not have.
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(auth.SecretNotFoundError):
        auth.find_secret(None, None)


def test_a_secrets_file_that_another_put_there_is_refused(
    no_secret_around: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = no_secret_around / "real"
    auth.write_secret(str(real), "s")
    user = no_secret_around / ".ray_mono"
    user.mkdir()
    (user / "auth_token").symlink_to(real)
    with pytest.raises(auth.SecretFileError, match="auth_token cannot be read: it is a link"):
        auth.find_secret(None, None)
    # The one that the environment names may be a link: so Kubernetes mounts secrets.
    monkeypatch.setenv(auth.TOKEN_PATH_VARIABLE, str(user / "auth_token"))
    assert auth.find_secret(None, None) == "s"
    real.chmod(0o666)
    with pytest.raises(auth.SecretFileError, match="other users can write"):
        auth.find_secret(None, None)
    real.unlink()
    os.mkfifo(real)
    with pytest.raises(auth.SecretFileError, match="no regular file"):
        auth.find_secret(None, None)
