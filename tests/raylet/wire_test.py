"""What of a lease request reaches the machines."""

from __future__ import annotations

import pytest

from ray_mono.protobuf import common_pb2, raylet_pb2
from ray_mono.raylet.wire import lease_request_from


@pytest.mark.parametrize(("owner_id", "is_whose"), [(b"", b"caller"), (b"owner", b"owner")])
def test_who_asks_owns_what_a_lease_is_for_unless_it_names_somebody(owner_id: bytes, is_whose: bytes) -> None:
    """The GCS asks for actors of others."""
    requester = common_pb2.Address(worker_id=b"caller")
    message = raylet_pb2.RequestWorkerLeaseRequest(requester=requester, owner_id=owner_id, is_retriable=True)
    request = lease_request_from(message, 1)
    assert (request.owner_id, request.is_retriable) == (is_whose, True)
