"""The cluster's tables as the GCS tells them: what is asked of it, and what comes of its answers."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mono.protobuf import common_pb2, gcs_pb2
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.core_worker.scene import Scene


class Tables:
    """A core worker whose GCS answers `reply` to this method, and what it was asked."""

    def __init__(self, method: str, reply: Any) -> None:
        self._scene = Scene()
        self._method = method
        self._scene.wire.replies[method] = lambda request: reply
        self.state = self._scene.core.global_state

    @property
    def asked(self) -> Any:
        (said,) = self._scene.wire.all(self._method, "gcs")
        return said.request


@pytest.mark.parametrize(("found", "value"), [(True, b"value"), (True, b""), (False, None)])
def test_a_key_has_its_value_or_none(found: bool, value: bytes | None) -> None:
    tables = Tables("KvGet", gcs_pb2.KvGetReply(found=found, value=value or b""))
    assert tables.state.kv_get(b"space", b"key") == value
    assert tables.asked == gcs_pb2.KvGetRequest(namespace=b"space", key=b"key")


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("added", [True, False])
def test_who_puts_a_key_hears_whether_it_is_new(overwrite: bool, added: bool) -> None:
    tables = Tables("KvPut", gcs_pb2.KvPutReply(added=added))
    assert tables.state.kv_put(b"space", b"key", b"value", overwrite) is added
    assert tables.asked == gcs_pb2.KvPutRequest(
        namespace=b"space", key=b"key", value=b"value", overwrite=overwrite
    )


@pytest.mark.parametrize("exists", [True, False])
def test_whether_a_key_exists_is_asked_without_its_value(exists: bool) -> None:
    tables = Tables("KvExists", gcs_pb2.KvExistsReply(exists=exists))
    assert tables.state.kv_exists(b"space", b"key") is exists
    assert tables.asked == gcs_pb2.KvGetRequest(namespace=b"space", key=b"key")


@pytest.mark.parametrize("by_prefix", [True, False])
def test_who_deletes_keys_hears_how_many_there_were(by_prefix: bool) -> None:
    tables = Tables("KvDel", gcs_pb2.KvDelReply(deleted=2))
    assert tables.state.kv_delete(b"space", b"key", by_prefix) == 2
    assert tables.asked == gcs_pb2.KvDelRequest(namespace=b"space", key=b"key", by_prefix=by_prefix)


def test_keys_are_those_that_begin_so() -> None:
    tables = Tables("KvKeys", gcs_pb2.KvKeysReply(keys=[b"k1", b"k2"]))
    assert tables.state.kv_keys(b"space", b"k") == [b"k1", b"k2"]
    assert tables.asked == gcs_pb2.KvKeysRequest(namespace=b"space", prefix=b"k")


@pytest.mark.parametrize(
    ("table", "method", "reply"),
    [
        ("nodes", "GetAllNodes", gcs_pb2.GetAllNodesReply(nodes=[common_pb2.NodeInfo(node_id=b"n")])),
        ("jobs", "GetAllJobs", gcs_pb2.GetAllJobsReply(jobs=[common_pb2.JobInfo(job_id=b"j")])),
        ("actors", "GetAllActors", gcs_pb2.GetAllActorsReply(actors=[common_pb2.ActorInfo(actor_id=b"a")])),
    ],
)
def test_the_rows_of_a_table_are_the_gcss(table: str, method: str, reply: Any) -> None:
    tables = Tables(method, reply)
    assert list(getattr(tables.state, table)()) == list(getattr(reply, table))


@pytest.mark.parametrize("collect", [True, False])
def test_resources_are_as_the_gcs_knows_them_or_asked_of_each_node(collect: bool) -> None:
    row = common_pb2.NodeResources(node_id=b"n")
    tables = Tables("GetAllResources", gcs_pb2.GetAllResourcesReply(nodes=[row]))
    assert list(tables.state.resources(collect)) == [row] and tables.asked.collect is collect


def test_an_actor_is_told_as_it_is_now_whatever_its_version() -> None:
    row = common_pb2.ActorInfo(actor_id=b"a", version=3)
    tables = Tables("WatchActor", row)
    assert tables.state.actor(b"a") == row
    assert tables.asked == gcs_pb2.WatchActorRequest(actor_id=b"a", after_version=0)


@pytest.mark.parametrize("everywhere", [True, False])
def test_named_actors_are_those_of_a_namespace_or_of_all(everywhere: bool) -> None:
    row = gcs_pb2.ListNamedActorsReply(actors=[{"name": "counter"}])
    tables = Tables("ListNamedActors", row)
    assert [each.name for each in tables.state.named_actors(everywhere, "space")] == ["counter"]
    assert tables.asked == gcs_pb2.ListNamedActorsRequest(all_namespaces=everywhere, namespace="space")


def test_what_the_gcs_says_of_the_cluster_is_handed_on() -> None:
    reply = gcs_pb2.ClusterInfo()
    assert Tables("GetClusterInfo", reply).state.cluster_info() == reply


def test_workers_are_asked_for_the_task_events_that_they_have_not_sent() -> None:
    batch = gcs_pb2.TaskEvents()
    tables = Tables("GetTaskEvents", gcs_pb2.GetTaskEventsReply(batches=[batch]))
    assert list(tables.state.task_events()) == [batch] and tables.asked.collect


def test_a_gcs_that_does_not_answer_is_told_as_that() -> None:
    scene = Scene()
    scene.wire.connect("gcs").close()
    with pytest.raises(RpcError) as raised:
        scene.core.global_state.nodes()
    assert raised.value.code is StatusCode.UNAVAILABLE
