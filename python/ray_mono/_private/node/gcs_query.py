"""Questions to a GCS from code that is not a service: the CLI, and a node before it has any process.

Each question opens a connection and closes it again, within a bound.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from ray_mono.protobuf.gcs_rpc import GcsServiceAsyncStub
from ray_mono.rpc.auth import SecretNotFoundError, find_secret
from ray_mono.rpc.framed import FramedTransport
from ray_mono.rpc.surface import RpcError, StatusCode

Answer = TypeVar("Answer")


class SecretRefusedError(ConnectionError):
    """The cluster has another secret than the one given. The message says how to pass it."""


def cluster_secret(
    address: str, password: str | None, session_dir: str | None, timeout_s: float = 10.0
) -> str:
    """The secret of the cluster at host:port, as auth.find_secret has it.

    Raises what that raises. Where there is no secret and nobody listens at the address either, it is a
    ConnectionError.
    """
    try:
        return find_secret(password, session_dir)
    except SecretNotFoundError:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout_s).close()
        except OSError as error:
            reason = error.strerror or error
            raise ConnectionError(
                f"no cluster answers at {address}: nothing listens there ({reason})"
            ) from None
        raise


def query_gcs(
    address: str,
    secret: str,
    question: Callable[[GcsServiceAsyncStub], Awaitable[Answer]],
    timeout_s: float = 10.0,
) -> Answer:
    """Runs question(stub) on a connection of its own. address: host:port or unix:/path.

    Raises SecretRefusedError, ConnectionError where nobody answers within timeout_s, and what the question
    raises. It can be used anywhere, also inside of a running event loop (a notebook's), which it then blocks.
    """

    async def ask() -> Answer:
        channel = await FramedTransport(secret).connect(address, timeout_s)
        try:
            return await question(GcsServiceAsyncStub(channel))
        finally:
            channel.close()

    async def ask_in_time() -> Answer:
        try:
            return await asyncio.wait_for(ask(), timeout_s)
        except TimeoutError:
            raise ConnectionError(f"the GCS at {address} did not answer within {timeout_s:g} s") from None
        except RpcError as error:
            if error.code is StatusCode.UNAUTHENTICATED:
                raise SecretRefusedError(f"the cluster at {address} refused: {error.message}") from None
            if error.code is StatusCode.UNAVAILABLE:
                why = error.message.removeprefix(f"cannot connect to {address}: ")
                raise ConnectionError(f"no cluster answers at {address}: {why}") from None
            raise

    return run(ask_in_time())


def run(coroutine: Coroutine[Any, Any, Answer]) -> Answer:
    """Runs it to its end, also inside of a running event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    answers: list[Answer] = []
    errors: list[BaseException] = []

    def target() -> None:
        try:
            answers.append(asyncio.run(coroutine))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=target, name="gcs-query", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return answers[0]
