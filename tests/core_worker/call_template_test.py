"""What a process and its peers keep of the constant parts of calls."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from ray_mono.core_worker.call_template import ENDED_MAX, RECENT_MAX, CallTemplate, CallTemplates, Peer
from ray_mono.protobuf import common_pb2, core_worker_pb2


class ReceivingPeer(Peer):
    """What arrives at the other end, whose table is `known`."""

    def __init__(self) -> None:
        super().__init__(cast("Any", SimpleNamespace()), b"w" * 28, [])
        self.known: dict[int, str] = {}
        self.stub: Any = SimpleNamespace(
            PushTask=SimpleNamespace(start=self._pushed), ForgetTemplates=SimpleNamespace(notify=self._forget)
        )

    def _pushed(self, request: Any, on_done: Any, on_part: Any) -> None:
        if request.HasField("spec"):
            assert request.template_id not in self.known
            self.known[request.template_id] = request.spec.name
        assert request.template_id in self.known

    def _forget(self, request: Any) -> None:
        for number in request.template_ids:
            del self.known[number]

    def call(self, template: CallTemplate) -> None:
        self.push(template, core_worker_pb2.PushTaskRequest(template_id=template.number), None)


def named(name: str) -> common_pb2.TaskSpec:
    return common_pb2.TaskSpec(name=name)


def test_equal_templates_are_one_also_when_nobody_held_the_first() -> None:
    templates = CallTemplates(lambda: [])
    number = templates.of_function(named("f")).number
    assert templates.of_function(named("f")).number == number
    assert templates.of_function(named("g")).number != number


def test_templates_of_a_name_for_each_call_stay_bounded_here_and_at_the_peers() -> None:
    first, second = ReceivingPeer(), ReceivingPeer()
    templates = CallTemplates(lambda: [first, second])
    kept = templates.of_function(named("kept"))
    first.call(kept)
    second.call(kept)
    for number in range(4 * (RECENT_MAX + ENDED_MAX)):
        first.call(templates.of_function(named(f"call {number}")))
        assert len(first.known) <= 1 + RECENT_MAX + ENDED_MAX
    assert first.known[kept.number] == "kept" and second.known == {kept.number: "kept"}
    # It is not sent again, and what was forgotten would be.
    first.call(kept)
    again = templates.of_function(named("call 0"))
    first.call(again)
    assert first.known[again.number] == "call 0"
