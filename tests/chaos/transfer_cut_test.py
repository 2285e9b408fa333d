"""Two nodes cannot reach each other, and both reach the head: who copies an object finds another holder, or
has it when the network is mended, and so has who asks an owner for a small one.

Where the machine allows no network namespaces this is not tried. tests/object_manager and tests/simulation
have holders that fall silent and networks that are cut all the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ray_mono as ray
from tests.chaos.far_network import FAR_IPS, HUB_IP, FarNetworks, far_networks
from tests.integration.bounded import get
from tests.integration.clusters import join_cluster, run_command
from tests.waiting import wait_until

SIZE_BYTES = 40 << 20
SETTINGS = {"object_manager": {"idle_transfer_timeout_s": 1.0, "connect_timeout_s": 1.0}}


@pytest.fixture
def networks(session_base: Path) -> Iterator[FarNetworks]:
    """A cluster: this process is a driver on the head's node, and two nodes ("holder", "reader") are far."""
    with far_networks() as made:
        if isinstance(made, str):
            pytest.skip(made)
        context = ray.init(address="local", num_cpus=1, _node_ip_address=HUB_IP, _system_config=SETTINGS)
        address, session_dir = (context.address_info[name] for name in ("gcs_address", "session_dir"))
        for number, name in enumerate(("holder", "reader")):
            inside = made.inside(number, Path(session_dir) / "sockets")
            options = {"num_cpus": 1, "resources": {name: 1}, "node_ip_address": FAR_IPS[number]}
            join_cluster(session_base, address, inside, **options)
        try:
            yield made
        finally:
            made.mend()
            ray.shutdown()
            assert run_command("stop").status == 0


@ray.remote(resources={"holder": 0.1})
def make(size_bytes: int) -> Any:
    return np.full(size_bytes, 7, np.uint8)


@ray.remote(resources={"reader": 0.1})
def read(array: Any) -> int:
    return int(array.sum(dtype=np.int64))


def test_a_copy_comes_from_a_holder_that_can_be_reached(networks: FarNetworks) -> None:
    # The two have a connection, which nobody tells of the cut.
    assert get(read.remote(make.remote(1 << 20))) == 7 << 20
    reference = make.remote(SIZE_BYTES)
    assert len(get(reference)) == SIZE_BYTES
    wait_until(
        lambda: len(ray.experimental.get_object_locations([reference])[reference]["node_ids"]) == 2,
        "the driver's copy is known",
    )
    networks.cut()
    assert get(read.remote(reference)) == 7 * SIZE_BYTES
    assert len(ray.nodes()) == 3 and all(row["Alive"] for row in ray.nodes())


def test_a_copy_whose_only_holder_cannot_be_reached_comes_when_it_can(networks: FarNetworks) -> None:
    assert get(read.remote(make.remote(1 << 20))) == 7 << 20
    reference = make.remote(SIZE_BYTES)
    ray.wait([reference], fetch_local=False)
    networks.cut()
    result = read.remote(reference)
    assert ray.wait([result], timeout=1.5)[0] == []
    networks.mend()
    assert get(result) == 7 * SIZE_BYTES


@ray.remote(resources={"reader": 0.1})
class Owner:
    def lend(self) -> list[Any]:
        self.lent = [ray.put(7)]
        return self.lent


@ray.remote(resources={"holder": 0.1}, max_retries=0)
def read_lent(lent: list[Any]) -> Any:
    return ray.get(lent[0])


def test_an_owner_that_cannot_be_reached_is_not_taken_for_dead(networks: FarNetworks) -> None:
    owner = Owner.remote()
    lent = get(owner.lend.remote())
    networks.cut()
    result = read_lent.remote(lent)
    assert ray.wait([result], timeout=3)[0] == []
    networks.mend()
    assert get(result) == 7
