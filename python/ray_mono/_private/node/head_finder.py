"""Where the head of a cluster answers: the newest one, at one of the addresses that were given, or where this
machine's raylet has found it.

A head that died is started again. Nothing answers at its address meanwhile, as where there never was a
cluster. A node of the cluster on this machine makes the difference: while it lives its raylet looks for the
head, and tells where it is (AwaitHead), which may be another place. So this waits, HEAD_PATIENCE_S at most,
and says for what after WARN_AFTER_S. Where no node is here, nothing is waited for.

Of several addresses each is asked. Their heads must be of one cluster; the one with the highest number is
right, and the others are refused.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from ray_mono._private.node.bootstrap import ClusterAddress
from ray_mono._private.node.gcs_query import SecretRefusedError, cluster_secret, run
from ray_mono.protobuf import common_pb2, gcs_pb2, raylet_pb2
from ray_mono.protobuf.gcs_rpc import GcsServiceAsyncStub
from ray_mono.protobuf.raylet_rpc import RayletServiceAsyncStub
from ray_mono.rpc.framed import FramedTransport
from ray_mono.rpc.surface import RpcError, StatusCode

HEAD_PATIENCE_S = 60.0
"""As gcs_reconnect_timeout_s: a raylet that waits for longer ends."""
WARN_AFTER_S = 2.0
LOOK_PERIOD_S = 0.2
ANSWER_S = 10.0
"""For one answer of a head that takes the connection."""

logger = logging.getLogger(__name__)


def locate_head(
    cluster: ClusterAddress, password: str | None, patience_s: float = HEAD_PATIENCE_S
) -> ClusterAddress:
    """The same cluster, with the address at which its head answers. Unchanged where there is only one address
    and no node here: whoever asks there hears what is wrong.

    Raises ConnectionError, and as cluster_secret does.
    """
    if not cluster.others and not cluster.raylet_socket:
        return cluster
    addresses = (cluster.address, *cluster.others)
    return replace(
        cluster, address=run(_locate(cluster, _secret(cluster, addresses, password), patience_s)), others=()
    )


def _secret(cluster: ClusterAddress, addresses: Sequence[str], password: str | None) -> str:
    """Of whichever listens, where a secret has to be asked for."""
    for address in addresses[:-1]:
        try:
            return cluster_secret(address, password, cluster.session_dir)
        except ConnectionError as error:
            logger.debug("%s", error)
    return cluster_secret(addresses[-1], password, cluster.session_dir)


async def _locate(cluster: ClusterAddress, secret: str, patience_s: float) -> str:
    began_s = time.monotonic()
    addresses: tuple[str, ...] = (cluster.address, *cluster.others)
    has_warned = False
    while True:
        answers = await asyncio.gather(*(_ask(address, secret) for address in addresses))
        infos = [answer for answer in answers if isinstance(answer, gcs_pb2.ClusterInfo)]
        if infos:
            return _newest(infos)
        why = "; ".join(dict.fromkeys(_why(answer) for answer in answers))
        waited_s = time.monotonic() - began_s
        refused = [
            answer
            for answer in answers
            if isinstance(answer, RpcError) and answer.code is StatusCode.UNAUTHENTICATED
        ]
        if refused:
            raise SecretRefusedError(f"the cluster at {cluster.address} refused: {refused[0].message}")
        if not cluster.raylet_socket or waited_s >= patience_s:
            waited = f", and has not for {waited_s:.0f} s" if cluster.raylet_socket else ""
            raise ConnectionError(f"no head of the cluster at {cluster.address} answers{waited}: {why}")
        if waited_s >= WARN_AFTER_S and not has_warned:
            has_warned = True
            logger.warning(
                "The head of the cluster at %s does not answer (%s). This node is there, so the head is"
                " waited for, %g s at most.",
                cluster.address,
                why,
                patience_s,
            )
        found = await _found_by_raylet(cluster.raylet_socket, secret, WARN_AFTER_S)
        addresses = tuple(dict.fromkeys([cluster.address, *cluster.others, *found]))
        await asyncio.sleep(LOOK_PERIOD_S)


def _newest(infos: Sequence[gcs_pb2.ClusterInfo]) -> str:
    places = {f"{info.host}:{info.port}": info for info in infos}
    if len({info.cluster_id for info in infos}) > 1:
        raise ConnectionError(f"{' and '.join(sorted(places))} are heads of different clusters: name one")
    newest = max(places, key=lambda place: places[place].head_number)
    for place, info in places.items():
        if info.head_number < places[newest].head_number:
            logger.warning(
                "head %d at %s was replaced by head %d at %s",
                info.head_number,
                place,
                places[newest].head_number,
                newest,
            )
    return newest


def _why(answer: object) -> str:
    return answer.message if isinstance(answer, RpcError) else str(answer)


async def _ask(address: str, secret: str) -> gcs_pb2.ClusterInfo | Exception:
    try:
        channel = await FramedTransport(secret).connect(address, ANSWER_S)
    except RpcError as error:
        return error
    try:
        return await GcsServiceAsyncStub(channel).GetClusterInfo(common_pb2.Empty(), timeout_s=ANSWER_S)
    except RpcError as error:
        return error
    finally:
        channel.close()


async def _found_by_raylet(socket: str, secret: str, timeout_s: float) -> list[str]:
    """Where this node's raylet is registered; nothing where it is not, in time."""
    try:
        channel = await FramedTransport(secret).connect(f"unix:{socket}", timeout_s)
    except RpcError:
        return []
    try:
        request = raylet_pb2.AwaitHeadRequest()
        return [(await RayletServiceAsyncStub(channel).AwaitHead(request, timeout_s=timeout_s)).address]
    except RpcError:
        return []
    finally:
        channel.close()
