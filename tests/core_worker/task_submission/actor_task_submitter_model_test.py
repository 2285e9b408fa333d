"""The actor submitter in a world that is played, in every order of events: calls of one caller reach an incarnation in order, each ends
exactly once with a value that does not change, none runs more often than max_task_retries allow, and in the end none is left waiting.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ray_mono.common.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError, TaskCancelledError
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2
from tests.core_worker.called_actor import ACTOR_ID, CREATION_ID, LOST, Call, CalledActor, Line, Process

DEAD = common_pb2.DEAD
ROUNDS_MAX = 100
"""Of a world without trouble, until every call has to have ended."""
choices = st.integers(0, 7)


class ActorSubmitterAgainstAModel(RuleBasedStateMachine):
    """`choice` says which of those that something could happen to, modulo how many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.world = CalledActor()
        # Killed, and not ended yet.
        self.doomed: list[Process] = []
        # The caller was told of a kill, and no time has passed since: these are not to be sent anything.
        self.avoided: list[tuple[Line, int]] = []

    # ---- the caller

    @rule(max_retries=st.integers(0, 2), has_argument=st.booleans())
    def submit(self, max_retries: int, has_argument: bool) -> None:
        self.world.submit(max_retries, has_argument)

    def waiting_arguments(self) -> list[Call]:
        store = self.world.memory_store
        entries = [(call, store.get(call.argument)) for call in self.world.calls if call.argument is not None]
        return [call for call, entry in entries if entry is not None and not entry.ready]

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

    @rule(no_restart=st.booleans())
    def kill(self, no_restart: bool) -> None:
        """The GCS has heard and answered; the process ends a little later."""
        gcs = self.world.gcs
        if gcs.process is not None:
            self.doomed.append(gcs.process)
        if gcs.state != DEAD:
            gcs.change(DEAD if no_restart else common_pb2.RESTARTING, None)
        self.world.submitter.killed(ACTOR_ID)
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
        self.doomed.pop().is_alive = False

    def lines(self, is_running: bool) -> list[Line]:
        """Open connections on which something can happen next: a call run, or an answer delivered."""
        lines = [line for line in self.world.lines if not line.is_closed]
        return [
            line for line in lines if (line.to_run and line.process.is_alive if is_running else line.answers)
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
        lines[choice % len(lines)].deliver()

    @precondition(lambda self: any(not line.is_closed for line in self.world.lines))
    @rule(choice=choices)
    def connection_ends(self, choice: int) -> None:
        lines = [line for line in self.world.lines if not line.is_closed]
        lines[choice % len(lines)].end()
        self.avoided = []

    # ---- the GCS, and time

    @precondition(lambda self: self.world.gcs.has_news)
    @rule()
    def news_arrives(self) -> None:
        self.world.gcs.answer()

    @precondition(lambda self: self.world.gcs.watch is not None)
    @rule()
    def gcs_is_lost(self) -> None:
        self.world.gcs.answer(LOST)

    @precondition(lambda self: self.world.timers)
    @rule(choice=choices)
    def time_passes(self, choice: int) -> None:
        timers = self.world.timers
        timers.pop(choice % len(timers))()
        self.avoided = []

    @precondition(lambda self: self.world.probes)
    @rule()
    def probe_is_answered(self) -> None:
        line, on_done = self.world.probes.pop(0)
        is_there = line.process.is_alive and not line.is_closed
        on_done(common_pb2.Empty() if is_there else None, None if is_there else LOST)
        self.avoided = []

    # ---- what must hold

    @invariant()
    def each_call_is_in_one_place_or_over(self) -> None:
        actor, tasks = self.world.actor, self.world.tasks
        held = [task.task_id for task in [*actor.queue, *actor.in_flight.values()]]
        assert sorted(held) == sorted(tasks.pending)
        assert tasks.cancelled <= set(tasks.pending)

    @invariant()
    def a_value_never_changes(self) -> None:
        for call in self.world.calls:
            (return_id,) = call.task.return_ids
            entry = self.world.memory_store.get(return_id)
            assert entry is not None
            if call.outcome is not None or entry.ready:
                found = (entry.metadata, entry.data)
                assert entry.ready and call.outcome in (None, found), call
                call.outcome = found

    @invariant()
    def a_killed_process_is_sent_nothing_new(self) -> None:
        for line, sent in self.avoided:
            assert len(line.to_run) <= sent

    def teardown(self) -> None:
        """Trouble ends, and so does every call."""
        for _ in range(ROUNDS_MAX):
            if not self.world.tasks.pending:
                break
            self.a_quiet_round()
        assert not self.world.tasks.pending, [task.task_id for task in self.world.tasks.pending.values()]
        self.each_call_is_in_one_place_or_over()
        self.a_value_never_changes()
        for call in self.world.calls:
            self.check_outcome(call)
        returns = {call.task.return_ids[0] for call in self.world.calls}
        assert {object_id for object_id, _ in self.world.references.items()} == returns | {CREATION_ID}

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
                line.deliver()
        for line in world.lines:
            if not line.is_closed and not line.process.is_alive:
                line.end()
        if gcs.has_news:
            gcs.answer()
        timers, world.timers[:] = list(world.timers), []
        for timer in timers:
            timer()
        while world.probes:
            self.probe_is_answered()

    def check_outcome(self, call: Call) -> None:
        assert call.outcome is not None
        metadata, data = call.outcome
        assert data is not None
        if metadata == serialization.PLAIN:
            assert call.runs
            return
        error = serialization.deserialize(metadata, data)
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
