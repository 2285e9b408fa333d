"""The arguments of a call, and what its code is told of it: read, fetched, held, and let go."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from ray_mono.common.scheduling.resources import CPU, SCALE
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2, core_worker_pb2, object_manager_pb2
from tests.core_worker.scene import JOB_ID, NODE_ID, Connection
from tests.core_worker.worker_scene import CALLER, OTHER_OWNER, Arriving, Pushed, Worker, referenced

FIRST, SECOND = b"1" * 28, b"2" * 28


def inlined(value: Any, position: int) -> Any:
    serialized = serialization.serialize(value)
    message = common_pb2.SerializedObject(metadata=serialized.metadata, data=serialized.to_bytes())
    return common_pb2.TaskArg(value=message, position=position)


class Told(Worker):
    """Its function returns what it was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
        super().__init__(monkeypatch, **more)
        self.tell = self.function(lambda *args, **kwargs: (args, kwargs))

    def tell_values(self, **values: Any) -> None:
        """Their owner tells what these are, in the order in which it was asked."""
        for asked in self.wire.open("GetObjectStatus"):
            serialized = serialization.serialize(values[asked.request.object_id[:1].decode()])
            message = common_pb2.SerializedObject(metadata=serialized.metadata, data=serialized.to_bytes())
            asked.answer(core_worker_pb2.GetObjectStatusReply(value=message))


def test_small_values_are_put_where_they_belong(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Told(monkeypatch)
    call = worker.ask(
        worker.tell, None, "plain", keywords={"key": None}, by_reference=[inlined("a", 1), inlined("b", 5)]
    )
    worker.run()
    assert call.value == (("a", "plain"), {"key": "b"}) and not worker.wire.all("GetObjectStatus")


def test_values_are_asked_of_their_owners_and_put_where_they_belong(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Told(monkeypatch)
    args = [referenced(SECOND, 3), referenced(FIRST, 1)]
    call = worker.ask(worker.tell, None, None, by_reference=args)
    worker.run(lambda: worker.tell_values(**{"1": "first", "2": "second"}))
    assert call.value == (("first", "second"), {})
    assert {each.to for each in worker.wire.all("GetObjectStatus")} == {"unix:caller"}
    assert worker.core.reference_counts() == 0 and not call.answer.borrowed


@pytest.mark.parametrize("returned", [None, [1]])
def test_an_argument_by_reference_is_let_go_with_the_answer_small_as_that_may_be(
    returned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Told(monkeypatch)
    call = worker.ask(worker.function(lambda value: returned), None, by_reference=[referenced(FIRST, 1)])
    worker.run(lambda: worker.tell_values(**{"1": "first"}))
    assert call.value == returned and worker.core.reference_counts() == 0


class Looking:
    """An actor that looks whom it has told of what it was given."""

    def cut(self, value: Any, inside: Any) -> list[bytes]:
        _cut[-1].connection.close()
        return self.look(inside)

    def look(self, inside: Any) -> list[bytes]:
        return [each.request.object_id for each in _cut[-1].wire.open("AddBorrower")]


_cut: list[Worker] = []


def test_the_caller_hears_what_a_call_holds_that_runs_on_when_the_connection_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Told(monkeypatch)
    _cut.append(worker)
    worker.actor(Looking)
    call = worker.ask(worker.method("cut"), None, Arriving(SECOND), by_reference=[referenced(FIRST, 1)])
    worker.run(lambda: worker.tell_values(**{"1": "first"}))
    assert call.value == [SECOND, FIRST] and worker.core.reference_counts() == 0


def test_so_it_does_where_the_call_begins_after_that(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Told(monkeypatch)
    _cut.append(worker)
    worker.actor(Looking)
    call = worker.ask(worker.method("look"), Arriving(FIRST))
    worker.connection.close()
    monkeypatch.setattr(worker.connection, "on_close", lambda callback: callback("lost"))
    worker.run()
    assert call.value == [FIRST]


def test_a_caller_that_comes_back_is_answered_once_owners_know_what_its_calls_left_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It lets go then of what it gave to calls that it does not wait for any more."""

    class Keeping:
        kept: Any = None

        def keep(self, value: Any) -> None:
            self.kept = value
            worker.connection.close()

    worker = Told(monkeypatch)
    worker.actor(Keeping)
    worker.ask(worker.method("keep"), Arriving(FIRST))
    worker.run()
    answered: list[str] = []
    with worker.env.lock:
        worker.core.borrowing.when_named_again(b"another", lambda: answered.append("another"))
        worker.core.borrowing.when_named_again(CALLER.worker_id, lambda: answered.append("caller"))
        assert answered == ["another"]
        for said in worker.wire.open("AddBorrower"):
            assert answered == ["another"]
            said.answer(common_pb2.Empty())
        assert answered == ["another", "caller"]
        worker.core.borrowing.when_named_again(CALLER.worker_id, lambda: answered.append("again"))
    assert answered == ["another", "caller", "again"]


def test_a_call_that_waits_for_an_argument_has_told_what_came_with_it_when_its_caller_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Keeping:
        def keep(self, value: Any, inside: Any) -> None:
            self.kept = inside

    worker = Told(monkeypatch)
    worker.actor(Keeping)
    worker.ask(worker.method("keep"), None, Arriving(SECOND), by_reference=[referenced(FIRST, 1)])
    answered: list[str] = []

    def come_back() -> None:
        assert not worker.execution.receiver.take_back(CALLER.worker_id, object())
        worker.core.borrowing.when_named_again(CALLER.worker_id, lambda: answered.append("caller"))
        told = worker.wire.open("AddBorrower")
        assert {each.request.object_id for each in told} == {FIRST, SECOND} and not answered
        for each in told:
            each.answer(common_pb2.Empty())
        assert answered == ["caller"]
        worker.tell_values(**{"1": "first"})

    worker.run(come_back)


def test_the_same_object_given_twice_is_asked_for_and_held_once(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Told(monkeypatch)
    args = [referenced(FIRST, 1), referenced(FIRST, 3)]
    call = worker.ask(worker.tell, None, None, by_reference=args)
    worker.run(lambda: worker.tell_values(**{"1": "first"}))
    assert call.value == (("first", "first"), {}) and len(worker.wire.all("GetObjectStatus")) == 1
    assert worker.core.reference_counts() == 0


def test_an_object_in_a_store_is_asked_of_nobody_but_the_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    worker = Told(monkeypatch, store_file=tmp_path / "store")
    argument = referenced(FIRST, 1, location_node_ids=[NODE_ID], size_bytes=9)
    data = serialization.serialize("stored").to_bytes()
    (tmp_path / "store").write_bytes(data.ljust(1 << 20, b"\0"))
    call = worker.ask(worker.tell, None, by_reference=[argument])

    def found() -> None:
        asked = worker.wire.last("Get").request.objects[0]
        assert (asked.object_id, list(asked.location_node_ids)) == (FIRST, [NODE_ID])
        item = object_manager_pb2.ObjectFound(object_id=FIRST, size_bytes=len(data))
        worker.wire.last("Get").answer(object_manager_pb2.GetReply(objects=[item]))

    worker.run(found)
    assert call.value == (("stored",), {}) and not worker.wire.all("GetObjectStatus")
    worker.turn()
    worker.pass_time(1.0)
    worker.turn()
    assert [list(each.request.object_ids) for each in worker.wire.all("Release")] == [[FIRST]]


def test_an_argument_that_is_an_error_fails_the_call_with_both_hops(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Told(monkeypatch)
    call = worker.ask(worker.tell, None, by_reference=[referenced(FIRST, 1)])

    def fail() -> None:
        serialized = serialization.serialize_error(LookupError("earlier"))
        message = common_pb2.SerializedObject(metadata=serialized.metadata, data=serialized.to_bytes())
        worker.wire.last("GetObjectStatus").answer(core_worker_pb2.GetObjectStatusReply(value=message))

    worker.run(fail)
    assert call.answer.is_application_error and "earlier" in str(call.value)
    assert worker.core.reference_counts() == 0


class Unreadable:
    def __reduce__(self) -> Any:
        return fail_to_read, ()


def fail_to_read() -> None:
    raise LookupError("in the pickle")


def test_an_argument_that_cannot_be_read_fails_the_call_and_no_reference_stays_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Told(monkeypatch)
    call = worker.ask(worker.tell, Arriving(FIRST, CALLER), Unreadable())
    worker.run()
    assert "a value cannot be unpickled" in str(call.value) and "in the pickle" in str(call.value)
    assert worker.core.reference_counts() == 0
    after = worker.ask(worker.tell, 1)
    worker.run()
    assert after.value == ((1,), {})


def test_a_reference_that_is_unpickled_after_the_arguments_were_read_is_not_taken_for_one_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(monkeypatch)
    later = pickle.dumps(Arriving(FIRST, OTHER_OWNER))
    kept: list[Any] = []

    def read(argument: int) -> None:
        kept.append(pickle.loads(later))
        assert worker.wire.all("AddBorrower"), "its owner hears of it at once"

    call = worker.ask(worker.function(read), 1)
    worker.run()
    assert call.value is None or not call.replies
    with worker.env.lock:
        worker.wire.last("AddBorrower").answer(common_pb2.Empty())
    assert call.value is None


def test_one_without_arguments_reads_none(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Told(monkeypatch)
    call = worker.ask(worker.tell)
    worker.run()
    assert call.value == ((), {})


# ---- what a call's code is told of it


def test_a_task_knows_its_name_attempt_and_what_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)

    def look() -> Any:
        context = worker.context
        task = context.get()
        return (
            context.task_id(), context.task_name(), context.function_name(), context.attempt(),
            task.kind.depth, context.assigned_resources(), context.resource_ids(), context.actor_id(),
            task.kind.job_id,
        )  # fmt: skip

    given = core_worker_pb2.PushTaskRequest().resource_ids
    given["X"].ids.extend([2, 5])
    spec = worker.function(look, resources=common_pb2.ResourceSet(amounts={CPU: 2 * SCALE}))
    call = worker.ask(spec, attempt=3, depth=4, resource_ids=given)
    worker.run()
    assert call.value == (call.task_id, "f", "m.f", 3, 4, {"CPU": 2.0}, {"X": [2, 5]}, b"", JOB_ID)


def test_an_actors_calls_have_what_the_actor_has_and_run_in_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)

    class Actor:
        def look(self) -> Any:
            context = worker.context
            return (
                context.task_name(), context.function_name(), context.assigned_resources(),
                context.resource_ids(), context.get().kind.job_id,
            )  # fmt: skip

    given = core_worker_pb2.PushTaskRequest().resource_ids
    given["X"].ids.append(1)
    spec = worker.function(
        Actor,
        "Actor.__init__",
        type=common_pb2.ACTOR_CREATION_TASK,
        resources=common_pb2.ResourceSet(amounts={CPU: SCALE}),
        actor_creation=common_pb2.ActorCreationSpec(actor_id=b"a" * 16),
    )
    worker.ask(spec, resource_ids=given)
    worker.run()
    call = worker.ask(worker.method("look", job_id=b"job2"))
    worker.run()
    assert call.value == ("Actor.look", "m.Actor.look", {"CPU": 1.0}, {"X": [1]}, JOB_ID)


def test_a_whole_specification_without_a_template_runs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GCS creates actors so."""
    worker = Told(monkeypatch)
    spec = common_pb2.TaskSpec()
    spec.CopyFrom(worker.tell)
    spec.task_id, spec.flat_args = b"t" * 24, pickle.dumps([None, 1])
    call = Pushed(Connection(), worker.reactor, spec.task_id)
    request = core_worker_pb2.PushTaskRequest(spec=spec)
    worker.execution.receiver.PushTask(request, call)  # type: ignore[arg-type]
    worker.run()
    assert call.value == ((1,), {}) and not call.connection.state
