"""The actor submitter in a world that is played, in every order of events: calls of one caller reach an
incarnation in order, each ends exactly once with a value that does not change, none runs more often than
max_task_retries allow, and in the end none is left waiting.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ray_mono.common.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError, TaskCancelledError
from ray_mono.protobuf import common_pb2
from tests.core_worker.called_actor import Call, CalledActor, Line, Process
from tests.core_worker.scene import LOST
from tests.core_worker.task_submission.tasks import id_of

DEAD = common_pb2.DEAD
ROUNDS_MAX = 100
"""Of a world without trouble, until every call has to have ended."""
choices = st.integers(0, 7)


class ActorSubmitterAgainstAModel(RuleBasedStateMachine):
    """`choice` says which of those that something could happen to, modulo how many there are."""

    def __init__(self) -> None:
        super().__init__()
        # Killed, and not ended yet.
        self.doomed: list[Process] = []
        # The caller was told of a kill, and no time has passed since: these are not to be sent anything.
        self.avoided: list[tuple[Line, int]] = []

    @initialize(is_created_here=st.booleans())
    def begin(self, is_created_here: bool) -> None:
        self.world = CalledActor(is_created_here=is_created_here)

    # ---- the caller

    @rule(max_retries=st.integers(0, 2), has_argument=st.booleans())
    def submit(self, max_retries: int, has_argument: bool) -> None:
        self.world.submit(max_retries, has_argument)

    def waiting_arguments(self) -> list[Call]:
        calls = self.world.calls
        return [call for call in calls if call.argument is not None and not call.argument.is_answered]

    @precondition(lambda self: self.waiting_arguments())
    @rule(choice=choices)
    def argument_arrives(self, choice: int) -> None:
        calls = self.waiting_arguments()
        self.world.argument_arrives(calls[choice % len(calls)])

    @precondition(lambda self: self.waiting_arguments())
    @rule(choice=choices)
    def argument_fails(self, choice: int) -> None:
        calls = self.waiting_arguments()
        self.world.argument_fails(calls[choice % len(calls)])

    @precondition(lambda self: self.world.calls)
    @rule(choice=choices)
    def cancel(self, choice: int) -> None:
        self.world.cancel(self.world.calls[-1 - choice % len(self.world.calls)])

    @precondition(lambda self: self.world.gcs.state != DEAD or self.world.held.actor.is_connected)
    @rule(no_restart=st.booleans())
    def kill(self, no_restart: bool) -> None:
        """The GCS has heard and answered; the process ends a little later."""
        gcs = self.world.gcs
        if gcs.process is not None:
            self.doomed.append(gcs.process)
        if gcs.state != DEAD:
            gcs.change(DEAD if no_restart else common_pb2.RESTARTING, None)
        self.world.kill(no_restart)
        self.avoided = [(line, len(line.to_run)) for line in self.world.lines if line.process in self.doomed]

    # ---- the actor

    @precondition(
        lambda self: self.world.gcs.process is None and self.world.gcs.state != DEAD and not self.doomed
    )
    @rule()
    def actor_starts(self) -> None:
        self.world.gcs.start_actor()

    @precondition(lambda self: self.world.gcs.process is not None)
    @rule(will_restart=st.booleans())
    def actor_dies(self, will_restart: bool) -> None:
        self.world.die(will_restart)

    @precondition(lambda self: self.doomed)
    @rule()
    def killed_process_ends(self) -> None:
        self.doomed.pop().end()

    def lines(self, is_running: bool) -> list[Line]:
        """Open connections on which something can happen next: a call run, or an answer delivered."""
        return [
            line
            for line in self.world.lines
            if (line.to_run and line.process.is_alive if is_running else line.answers)
        ]

    @precondition(lambda self: self.lines(is_running=True))
    @rule(choice=choices, count=st.integers(1, 3))
    def call_runs(self, choice: int, count: int) -> None:
        lines = self.lines(is_running=True)
        line = lines[choice % len(lines)]
        for _ in range(min(count, len(line.to_run))):
            self.world.run(line)
        self.avoided = []

    @precondition(lambda self: self.lines(is_running=False))
    @rule(choice=choices)
    def answer_arrives(self, choice: int) -> None:
        lines = self.lines(is_running=False)
        self.world.deliver(lines[choice % len(lines)])

    @precondition(lambda self: any(not line.is_closed for line in self.world.lines))
    @rule(choice=choices)
    def connection_ends(self, choice: int) -> None:
        lines = [line for line in self.world.lines if not line.is_closed]
        self.world.end_line(lines[choice % len(lines)])
        self.avoided = []

    # ---- the GCS, and time

    @precondition(lambda self: self.world.gcs.has_news)
    @rule()
    def news_arrives(self) -> None:
        self.world.tell(waits=False)

    @precondition(lambda self: self.world.gcs.watch is not None)
    @rule()
    def gcs_is_lost(self) -> None:
        self.world.tell(LOST)

    @precondition(lambda self: self.world.timers)
    @rule(choice=choices)
    def time_passes(self, choice: int) -> None:
        timers = self.world.timers
        self.world.fire(timers[choice % len(timers)])
        self.avoided = []

    @precondition(lambda self: self.world.probes)
    @rule()
    def probe_is_answered(self) -> None:
        self.world.answer_probe(self.world.probes[0])
        self.avoided = []

    # ---- what must hold

    @invariant()
    def each_call_is_in_one_place_or_over(self) -> None:
        actor = self.world.held.actor
        held = [task.task_id for task in [*actor.queue, *actor.in_flight.values()]]
        assert sorted(held) == sorted(id_of(call.ref) for call in self.world.pending())
        assert len(held) == len(self.world.scene.core.describe()["tasks_pending"])
        assert self.world.gcs.watch is None or self.world.gcs.watch.to == "gcs"

    @invariant()
    def outcomes_are_noted(self) -> None:
        pending = self.world.pending()
        for call in self.world.calls:
            if call not in pending and call.outcome is None:
                call.outcome = self.found(call)
            assert call not in pending or call.outcome is None, "it had a value"

    def found(self, call: Call) -> Any:
        found = self.world.outcome(call)
        return (found, str(found)) if isinstance(found, BaseException) else found

    @invariant()
    def a_killed_process_is_sent_nothing_new(self) -> None:
        for line, sent in self.avoided:
            assert len(line.to_run) <= sent

    def teardown(self) -> None:
        """Trouble ends, and so does every call."""
        for _ in range(ROUNDS_MAX):
            if not self.world.pending():
                break
            self.a_quiet_round()
        assert not self.world.pending()
        self.each_call_is_in_one_place_or_over()
        self.outcomes_are_noted()
        for call in self.world.calls:
            self.check_outcome(call)
        for call in self.waiting_arguments():
            self.world.argument_arrives(call)
        # Their values, and what stands for the actor.
        assert self.world.scene.core.reference_counts() == len(self.world.calls) + 1

    def a_quiet_round(self) -> None:
        world, gcs = self.world, self.world.gcs
        for call in self.waiting_arguments():
            world.argument_arrives(call)
        while self.doomed:
            self.killed_process_ends()
        if gcs.process is None and gcs.state != DEAD:
            gcs.start_actor()
        while self.lines(is_running=True) or self.lines(is_running=False):
            for line in self.lines(is_running=True):
                world.run(line)
            for line in self.lines(is_running=False):
                world.deliver(line)
        for line in world.lines:
            if not line.is_closed and not line.process.is_alive:
                world.end_line(line)
        if gcs.has_news:
            world.tell()
        for timer in world.timers:
            world.fire(timer)
        while world.probes:
            self.probe_is_answered()

    def check_outcome(self, call: Call) -> None:
        outcome, now = call.outcome, self.found(call)
        if not isinstance(outcome, tuple):
            assert call.runs and now == outcome
            return
        error, text = outcome
        assert isinstance(now, tuple) and type(now[0]) is type(error) and now[1] == text, (
            "a value never changes"
        )
        if call.is_cancelled:
            assert isinstance(error, TaskCancelledError)
        elif call.has_failed_argument:
            assert isinstance(error, RayTaskError) and not call.runs
        else:
            assert isinstance(error, ActorDiedError | ActorUnavailableError)


ActorSubmitterAgainstAModel.TestCase.settings = settings(
    max_examples=120, stateful_step_count=50, deadline=None, print_blob=True
)
TestActorSubmitterAgainstAModel = ActorSubmitterAgainstAModel.TestCase
