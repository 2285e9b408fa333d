"""One actor as its caller meets it, played: the GCS that knows where it lives, its processes, and the
connections to them.

Nothing happens by itself. What a caller sends waits in a Line until the process runs it; answers wait until
they are delivered; news of the actor waits until the GCS tells it; timers wait until they fire. So every
order that real sockets allow can be had. The caller is a core worker's scene.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from ray_mono.common.exceptions import GetTimeoutError, RayTaskError
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.options import ActorOptions, CallRules
from ray_mono.core_worker.task_submission.function_manager import Exported
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2, core_worker_pb2, gcs_pb2, raylet_pb2
from ray_mono.rpc.surface import RpcError
from tests.core_worker.scene import NODE_ID, Reply, Said, Scene, SceneChannel, address_of, value
from tests.core_worker.scene_time import SceneTimer
from tests.core_worker.task_submission.tasks import id_of, ids_of

OWNER = address_of(b"owner")
"""Another process, whose objects are arguments."""
ELSEWHERES_ACTOR = b"a" * 16
"""Its actor, of which a handle arrived here."""
USUAL = CallRules()
Status = core_worker_pb2.GetObjectStatusReply


class BrokenRule(Exception):
    """What was promised about calls does not hold."""


class Process:
    """One incarnation of the actor."""

    def __init__(self, scene: Scene, worker_id: bytes, node_id: bytes) -> None:
        self._scene = scene
        self.address = address_of(worker_id, node_id)
        is_near = node_id == NODE_ID
        self.channel = f"unix:{self.address.unix_path}" if is_near else f"{self.address.host}:1"
        self.is_alive = True

    def end(self) -> None:
        """Nobody connects to it any more. Connections end when they end."""
        self.is_alive = False
        self._scene.wire.gone.add(self.channel)


@dataclass
class Sent:
    """A call on its way."""

    said: Said
    is_cancelled: bool = False

    @property
    def task_id(self) -> bytes:
        return self.said.request.task_id  # type: ignore[no-any-return]


class Line:
    """A connection to a process, and what is under way on it."""

    def __init__(self, process: Process, channel: SceneChannel) -> None:
        self.process = process
        self.channel = channel
        self._to_run: deque[Sent] = deque()
        self._answers: deque[tuple[Sent, Any]] = deque()
        self._last_call = 0

    @property
    def is_closed(self) -> bool:
        return self.channel.is_closed

    @property
    def to_run(self) -> deque[Sent]:
        return deque() if self.is_closed else self._to_run

    @property
    def answers(self) -> deque[tuple[Sent, Any]]:
        return deque() if self.is_closed else self._answers

    def add(self, said: Said, number: int) -> None:
        """number: the call's, in the order in which they were made."""
        if number <= self._last_call:
            raise BrokenRule(f"call {number} after call {self._last_call}")
        self._last_call = number
        self._to_run.append(Sent(said))

    def cancel(self, task_id: bytes) -> None:
        for sent in self._to_run:
            sent.is_cancelled |= sent.task_id == task_id

    def answer(self, sent: Sent, reply: Any) -> None:
        self._answers.append((sent, reply))

    def deliver(self) -> None:
        sent, reply = self._answers.popleft()
        sent.said.answer(reply)

    @property
    def first_not_begun(self) -> bytes:
        """Its id; empty where all that was sent has begun."""
        return self._to_run[0].task_id if self._to_run else b""

    def end(self) -> None:
        """What was not delivered is lost."""
        self.channel.close()


class Gcs:
    """The row of the actor, and the caller's open watch."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self.state: int = common_pb2.PENDING_CREATION
        self.version = 1
        self.process: Process | None = None
        self.cause: common_pb2.DeathCause | None = None
        self.processes: dict[str, Process] = {}
        """Every one that it had, by its channel."""

    def change(self, state: int, process: Process | None) -> None:
        self.state, self.process = state, process
        self.version += 1

    def start_actor(self, node_id: bytes = NODE_ID) -> Process:
        process = Process(self._scene, b"worker%d" % (len(self.processes) + 1), node_id)
        self.processes[process.channel] = process
        self.change(common_pb2.ALIVE, process)
        return process

    @property
    def watch(self) -> Said | None:
        watches = self._scene.wire.open("WatchActor")
        if len(watches) > 1:
            raise BrokenRule("two watches of one actor at once")
        return watches[0] if watches else None

    @property
    def has_news(self) -> bool:
        watch = self.watch
        return watch is not None and self.version > watch.request.after_version

    def answer(self, error: RpcError | None = None, **fields: Any) -> None:
        """fields: of ActorInfo."""
        watch = self.watch
        assert watch is not None
        with self._scene.env.lock:
            if error is not None:
                watch.fail(error)
                return
            info = common_pb2.ActorInfo(
                actor_id=watch.request.actor_id,
                state=self.state,  # type: ignore[arg-type]
                version=self.version,
                death_cause=self.cause,
                **fields,
            )
            if self.process is not None:
                info.address.CopyFrom(self.process.address)
            watch.answer(info)


@dataclass
class Call:
    """One call as the test knows it."""

    ref: ObjectRef[Any]
    max_retries: int
    argument: Said | None
    """The owner of its argument is asked for that."""
    runs: int = 0
    is_cancelled: bool = False
    has_failed_argument: bool = False
    outcome: Any = None
    """Its value, once there is one, or the type and text of its error."""


class CalledActor:
    """The actor, its world, and a caller."""

    def __init__(self, rules: CallRules = USUAL, is_created_here: bool = False, **limits: Any) -> None:
        self.scene = scene = Scene(**limits)
        self.gcs = Gcs(scene)
        self.lines: list[Line] = []
        self.calls: list[Call] = []
        self._numbers: dict[bytes, int] = {}
        self._num_seen = 0
        self._num_arguments = 0
        scene.wire.replies["AddBorrower"] = lambda request: common_pb2.Empty()
        scene.wire.replies["KillActor"] = lambda request: common_pb2.Empty()
        self.last_answers = raylet_pb2.LastAnswersReply(is_known=True)
        """What the raylet says of a process that is gone."""
        scene.wire.replies["LastAnswers"] = lambda request: self.last_answers
        if is_created_here:
            scene.wire.replies["RegisterActor"] = lambda request: gcs_pb2.RegisterActorReply(created=True)
            code = Exported(common_pb2.FunctionDescriptor())
            self.held = scene.core.create_actor(code, ActorOptions(class_name="Actor", rules=rules), [])
        else:
            creation = self.borrowed(b"c" * 28)
            self.held = scene.core.hold_actor(ELSEWHERES_ACTOR, creation, rules)

    def borrowed(self, object_id: bytes) -> ObjectRef[Any]:
        """A reference of another process's."""
        owner = OWNER.SerializeToString(deterministic=True)
        return self.scene.core.reference_arrived(object_id, owner)

    @property
    def caller_id(self) -> bytes:
        return self.scene.env.worker_id

    # ---- what was said

    def look(self) -> None:
        """Sees to what the caller has said since the last look."""
        said, self._num_seen = self.scene.wire.said[self._num_seen :], len(self.scene.wire.said)
        for each in said:
            if each.method == "PushTask" and not each.is_answered:
                self._line_of(each).add(each, self._numbers[each.request.task_id])
            elif each.method == "CancelTask" and not each.is_answered:
                self._line_of(each).cancel(each.request.task_id)
                each.answer(core_worker_pb2.CancelTaskReply())
            elif each.method == "WatchActor":
                assert self.gcs.watch is not None or each.is_answered

    def _line_of(self, said: Said) -> Line:
        channel = self.scene.wire.channels[said.to]
        for line in self.lines:
            if line.channel is channel:
                return line
        line = Line(self.gcs.processes[said.to], channel)
        self.lines.append(line)
        return line

    @property
    def line(self) -> Line:
        """The only one."""
        self.look()
        (line,) = self.lines
        return line

    @property
    def probes(self) -> list[Said]:
        return [*self.scene.wire.open("TakeBackCalls"), *self.scene.wire.open("CheckAlive")]

    def answer_probe(self, probe: Said) -> None:
        """As the process does, if it lives."""
        with self.scene.env.lock:
            if probe.to in self.scene.wire.gone:
                probe.fail()
            elif probe.method == "CheckAlive":
                probe.answer(common_pb2.Empty())
            else:
                lost = [line for line in self.lines if line.process.channel == probe.to and line.is_closed]
                first = lost[-1].first_not_begun if lost else b""
                probe.answer(core_worker_pb2.TakeBackCallsReply(first_task_id=first))
        self.look()

    @property
    def timers(self) -> list[SceneTimer]:
        return [timer for timer in self.scene.reactor.timers if timer.callback is not None]

    def fire(self, timer: SceneTimer) -> None:
        """Before all others, whatever their times."""
        self.scene.reactor.timers.remove(timer)
        callback, timer.callback = timer.callback, None
        assert callback is not None
        with self.scene.env.lock:
            callback()
        self.scene.turn()
        self.look()

    @property
    def story(self) -> Any:
        """What DumpState tells of the actor."""
        return self.scene.core.describe()["actors"][self.held.actor_id.hex()]

    @property
    def warnings(self) -> list[str]:
        """What the driver is told."""
        told = [said.request.message.payload for said in self.scene.wire.all("Publish")]
        return [common_pb2.ErrorInfo.FromString(payload).message for payload in told]

    # ---- the caller

    def submit(self, max_retries: int = 0, has_argument: bool = False, **options: Any) -> Call:
        """A call; with an argument it waits for that."""
        core = self.scene.core
        method = core.method_template("method", "Actor", max_task_retries=max_retries, **options)
        arguments: list[Any] = []
        num_asked = len(self.scene.wire.all("GetObjectStatus"))
        if has_argument:
            self._num_arguments += 1
            arguments = [None, self.borrowed(b"argument %d".ljust(28) % self._num_arguments)]
        (ref,) = core.submit_actor_task(self.held, method, arguments)
        del arguments
        self.scene.turn()
        # Of a dead actor's call nobody asks for the argument.
        asked = self.scene.wire.all("GetObjectStatus")[num_asked:]
        call = Call(ref, max_retries, asked[0] if has_argument and asked else None)
        self.calls.append(call)
        self._numbers[id_of(ref)] = len(self.calls)
        self.look()
        return call

    def cancel(self, call: Call) -> None:
        call.is_cancelled |= call in self.pending()
        self.scene.core.cancel(call.ref, False, False)
        self.look()

    def kill(self, no_restart: bool) -> None:
        """The GCS has heard and answered; the process ends a little later."""
        self.scene.core.kill_actor(self.held.actor_id, no_restart)
        self.look()

    def argument_arrives(self, call: Call) -> None:
        self._argument_is(call, serialization.serialize("an argument"))

    def argument_fails(self, call: Call) -> None:
        call.has_failed_argument = call in self.pending()
        error = RayTaskError("made", "its traceback", ValueError("lost"))
        self._argument_is(call, serialization.serialize_error(error))

    def _argument_is(self, call: Call, made: serialization.Serialized) -> None:
        assert call.argument is not None
        message = common_pb2.SerializedObject(metadata=made.metadata, data=made.to_bytes())
        with self.scene.env.lock:
            call.argument.answer(Status(value=message))
        self.look()

    def pending(self) -> list[Call]:
        """Those without a value."""
        if not self.calls:
            return []
        refs = [call.ref for call in self.calls]
        waiting = set(self.scene.core.wait(refs, len(refs), 0, False)[1])
        return [call for call in self.calls if call.ref in waiting]

    def outcome(self, call: Call) -> Any:
        """Its value or its error."""
        found = self.scene.state_of(call.ref)
        assert not isinstance(found, GetTimeoutError), "it has no value"
        return found

    # ---- the actor

    def run(self, line: Line) -> None:
        """The process takes the next call that arrived on a connection, and answers it."""
        sent = line.to_run.popleft()
        number = self._numbers[sent.task_id]
        call = self.calls[number - 1]
        if sent.is_cancelled:
            line.answer(sent, Reply(status=Reply.CANCELLED))
            return
        call.runs += 1
        if call.runs > call.max_retries + 1 or sent.said.request.attempt > call.max_retries:
            raise BrokenRule(
                f"{sent} runs for the {call.runs}. time, and may be retried {call.max_retries} times"
            )
        line.answer(sent, value(f"{number}, run {call.runs}"))

    def deliver(self, line: Line) -> None:
        with self.scene.env.lock:
            line.deliver()
        self.look()

    def run_all(self) -> None:
        """What was sent is run and answered, on every line, until nothing is left."""
        self.look()
        while busy := [line for line in self.lines if line.to_run or line.answers]:
            for line in busy:
                if line.to_run:
                    self.run(line)
                if line.answers:
                    self.deliver(line)

    def end_line(self, line: Line) -> None:
        with self.scene.env.lock:
            line.end()
        self.look()

    def tell(self, error: RpcError | None = None, waits: bool = True, **fields: Any) -> None:
        """The GCS answers the watch. waits: where the caller waits for the end of a connection to a process
        that is gone, it does so in vain."""
        now_s = self.scene.reactor.now_s
        self.gcs.answer(error, **fields)
        self.look()
        if waits and self.gcs.state != common_pb2.ALIVE:
            in_vain_s = now_s + self.scene.env.config.last_answers_s
            for timer in [timer for timer in self.timers if timer.time_s == in_vain_s]:
                self.fire(timer)

    def starts(self, node_id: bytes = NODE_ID) -> None:
        """The actor has a new process, and the caller hears of it."""
        self.gcs.start_actor(node_id)
        self.tell()

    def die(self, will_restart: bool) -> None:
        """What its process had answered may be delivered still, and its connections end when they end."""
        if self.gcs.process is not None:
            self.gcs.process.end()
        self.gcs.change(common_pb2.RESTARTING if will_restart else common_pb2.DEAD, None)


# ---- a caller's view


def running_actor(rules: CallRules = USUAL, **limits: Any) -> CalledActor:
    """Alive, and its caller, who created it, knows where."""
    world = CalledActor(rules, True, **limits)
    world.starts()
    return world


def is_pending(world: CalledActor, call: Call) -> bool:
    return isinstance(world.scene.state_of(call.ref), GetTimeoutError)


def lose_actor(world: CalledActor, will_restart: bool) -> None:
    """By a kill of the caller's, who hears of its end from the GCS before it has read what the process had
    answered."""
    world.kill(no_restart=not will_restart)
    world.die(will_restart)
    world.tell()


def sent(world: CalledActor, line: Line | None = None) -> list[bytes]:
    """The calls that are with the actor."""
    return [each.task_id for each in (line or world.line).to_run]


def call_ids(*calls: Call) -> list[bytes]:
    return ids_of(*(call.ref for call in calls))
