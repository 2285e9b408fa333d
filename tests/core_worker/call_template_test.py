"""What a process and its peers keep of the constant parts of calls."""

from __future__ import annotations

import pytest

from ray_mono.core_worker.call_template import ENDED_MAX, RECENT_MAX, CallTemplate, CallTemplates
from ray_mono.core_worker.peers import Peer
from ray_mono.protobuf import common_pb2, core_worker_pb2
from tests.core_worker.scene import Scene, Wire
from tests.core_worker.task_submission.tasks import answer


class ReceivingPeer:
    """A peer, and what arrives at the other end, whose table is `known`."""

    def __init__(self, name: str = "peer") -> None:
        self.wire = Wire()
        self.peer = Peer(self.wire.connect(name), b"w" * 28, [])  # type: ignore[arg-type]
        self.known: dict[int, str] = {}

    def call(self, template: CallTemplate) -> None:
        request = core_worker_pb2.PushTaskRequest(template_id=template.number)
        self.peer.push_request(template, request, lambda reply, error: None)
        assert not request.HasField("spec") and not request.intended_worker_id and not request.run_first
        self.receive()

    def receive(self) -> None:
        for said in self.wire.said:
            if said.method == "ForgetTemplates":
                for number in said.request.template_ids:
                    del self.known[number]
            elif said.request.HasField("spec"):
                assert said.request.template_id not in self.known
                assert said.request.intended_worker_id == b"w" * 28
                self.known[said.request.template_id] = said.request.spec.name
            else:
                assert said.request.template_id in self.known and not said.request.intended_worker_id
        self.wire.said.clear()


def named(name: str) -> common_pb2.TaskSpec:
    return common_pb2.TaskSpec(name=name)


def test_equal_templates_are_one_also_when_nobody_held_the_first() -> None:
    templates = CallTemplates(lambda ended: None)
    number = templates.of_function(named("f"), None).number
    assert templates.of_function(named("f"), None).number == number
    assert templates.of_function(named("g"), None).number != number


def test_a_template_is_sent_once_per_connection() -> None:
    template = CallTemplates(lambda ended: None).new(named("f"))
    for receiver in (ReceivingPeer(), ReceivingPeer()):
        for _ in range(3):
            receiver.call(template)
        assert receiver.known == {template.number: "f"}


def test_templates_of_a_name_for_each_call_stay_bounded_here_and_at_the_peers() -> None:
    first, second = ReceivingPeer(), ReceivingPeer()

    def tell(ended: set[int]) -> None:
        for receiver in (first, second):
            receiver.peer.forget(ended)
            receiver.receive()

    templates = CallTemplates(tell)
    kept = templates.of_function(named("kept"), None)
    first.call(kept)
    second.call(kept)
    most = 0
    for number in range(4 * (RECENT_MAX + ENDED_MAX)):
        first.call(templates.of_function(named(f"call {number}"), None))
        most = max(most, len(first.known))
    assert most == 1 + RECENT_MAX + ENDED_MAX
    assert first.known[kept.number] == "kept" and second.known == {kept.number: "kept"}
    # It is not sent again, and what was forgotten would be.
    first.call(kept)
    again = templates.of_function(named("call 0"), None)
    first.call(again)
    assert first.known[again.number] == "call 0"


def test_who_has_nothing_of_what_ended_is_not_told() -> None:
    receiver = ReceivingPeer()
    receiver.call(CallTemplate(named("f"), 1))
    receiver.peer.forget({2, 3})
    assert not receiver.wire.said
    receiver.peer.forget({1, 2})
    assert list(receiver.wire.last("ForgetTemplates").request.template_ids) == [1]


@pytest.mark.parametrize(("num_returns", "refs"), [(0, 0), (1, 1), (3, 3), (-1, 1), (-2, 1)])
def test_a_call_returns_as_many_references_as_its_template_says_and_one_for_a_generator(
    num_returns: int, refs: int
) -> None:
    assert CallTemplate(common_pb2.TaskSpec(num_returns=num_returns), 1).num_returns == refs


def test_errors_name_a_method_with_its_class_and_a_function_by_its_name() -> None:
    assert CallTemplate(named("f"), 1).title == "f"
    assert CallTemplate(named("f"), 1, title="Actor.f").title == "Actor.f"


def test_of_functions_that_ended_every_worker_is_told() -> None:
    """In a core worker: the names are of single calls."""
    scene = Scene()
    for number in range(RECENT_MAX + ENDED_MAX + 2):
        ref = scene.submit(name=f"call {number}")
        if scene.wire.open("RequestWorkerLease"):
            scene.grant()
        answer(scene, ref)
        del ref
        scene.wire.said[:] = scene.wire.said[-40:]
    (told,) = scene.wire.all("ForgetTemplates")
    assert told.to == "unix:worker" and told.is_notice and len(told.request.template_ids) >= ENDED_MAX
