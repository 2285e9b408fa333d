"""Who asks a cluster that is not there hears that, and not that a secret is missing."""

from __future__ import annotations

import socket

import pytest

import ray_mono
from ray_mono._private.node.gcs_query import cluster_secret, query_gcs
from ray_mono.protobuf import common_pb2
from ray_mono.rpc.auth import TOKEN_PATH_VARIABLE, TOKEN_VARIABLE, SecretNotFoundError


@pytest.fixture(autouse=True)
def no_secret(monkeypatch: pytest.MonkeyPatch, session_base: object) -> None:
    """Nowhere on this machine."""
    for variable in (TOKEN_VARIABLE, TOKEN_PATH_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", "/none")


def test_an_address_at_which_nobody_listens_is_told_as_such() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        # Somebody is there, and may want one.
        with pytest.raises(SecretNotFoundError):
            cluster_secret(address, None, None)
    for ask in (lambda: cluster_secret(address, None, None), lambda: ray_mono.init(address)):
        with pytest.raises(
            ConnectionError, match=f"no cluster answers at {address}: nothing listens there"
        ) as raised:
            ask()
        assert raised.value.__suppress_context__, "one traceback"
    assert cluster_secret(address, "given", None) == "given"


def test_whoever_has_a_secret_hears_why_nobody_answers_and_the_address_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(ConnectionError) as raised:
        query_gcs(address, "secret", lambda gcs: gcs.GetClusterInfo(common_pb2.Empty()), timeout_s=30.0)
    assert str(raised.value) == f"no cluster answers at {address}: Connection refused"
