"""The end of a task: its values serialized, its references handed over, its answer sent. ARCHITECTURE's rules
1 and 2.

    value ──► returns: small ones inline, large ones written into the node's store
          ──► the references inside them are registered for the caller
          ──► the references that stay here are named in the reply, or registered
          ──► large returns are sealed ──► reply

A large return is sealed in one step with the reply. If the worker dies sooner, the store gives its room back:
the owner, which was told nothing of it, would never free it.

A reply may have to wait until owners have acknowledged. The next call, which may end the process, waits
unread_answer_s at most for that, and the worker does not end in order before (are_settled). An owner that is
stopped may take for ever. So if a reply waits for unsettled_s and the worker rests, its raylet is told that
the task uses no CPU.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from ray_mono.common import ids
from ray_mono.common.exceptions import RaySystemError
from ray_mono.common.our_bug import OUR_BUG, known
from ray_mono.common.raw_error import let_frames_go, name_of, str_of, text_of
from ray_mono.common.start_board import StartBoard
from ray_mono.core_worker.context import TaskContext
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.objects.blocked_notice import BlockedNotice
from ray_mono.core_worker.options import INLINE_BYTES_MAX
from ray_mono.core_worker.reference_counting.borrowing import Borrowing
from ray_mono.core_worker.reference_counting.dropped_references import DroppedReferences
from ray_mono.core_worker.reference_counting.reference_counter import ReferenceCounter
from ray_mono.core_worker.store_provider.plasma_store_provider import PlasmaStoreProvider
from ray_mono.core_worker.task_errors import describe_error, users_traceback
from ray_mono.core_worker.task_execution.call import Call, KnownSpec, Reply
from ray_mono.core_worker.task_execution.generator_runner import STREAMED, Failed
from ray_mono.core_worker.task_execution.kept_answers import KeptAnswers
from ray_mono.core_worker.task_execution.running import Running
from ray_mono.core_worker.task_execution.task_receiver import TaskReceiver
from ray_mono.core_worker.task_execution.unsettled_answers import UnsettledAnswers
from ray_mono.core_worker.task_wire import SHORT_MAX, usual_answer
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2, core_worker_pb2
from ray_mono.protobuf.common_pb2 import ACTOR_CREATION_TASK, ACTOR_TASK, NORMAL_TASK

logger = logging.getLogger(__name__)

ANSWERS_NOBODY = 70
"""How a worker exits that cannot answer: EX_SOFTWARE."""


class TaskReplies:
    """How one worker answers its calls."""

    def __init__(
        self,
        env: Environment,
        references: ReferenceCounter,
        borrowing: Borrowing,
        plasma: PlasmaStoreProvider,
        dropped: DroppedReferences,
        blocked: BlockedNotice,
        board: StartBoard,
        kept: KeptAnswers,
        running: Running,
        receiver: TaskReceiver,
    ) -> None:
        self._env = env
        self._references = references
        self._borrowing = borrowing
        self._plasma = plasma
        self._dropped = dropped
        self._blocked = blocked
        self._board = board
        self._kept = kept
        self._running = running
        self._receiver = receiver
        self._num_unflushed = 0
        self._unflushed_max = env.config.unflushed_answers_max
        self._alone_us = env.config.answered_alone_us
        env.reactor.serve_queues((kept.collected,), self._write_collected)
        self._unsettled = UnsettledAnswers(env, kept)

    @property
    def are_settled(self) -> bool:
        """Whether no answer waits for owners any more."""
        return not self._unsettled.has_some

    def finish(self, call: Call, task: TaskContext, value: Any) -> None:
        """Serializes the returns and answers."""
        spec = call.spec
        if spec.num_returns == 1 and spec.type != ACTOR_CREATION_TASK:
            plain = serialization.plain_pickle(value)
            if plain is not None and len(plain) <= INLINE_BYTES_MAX:
                # The usual case, kept short: it pickles, and has nothing inside.
                if (
                    len(plain) > SHORT_MAX
                    or task.held
                    or task.arrived
                    or spec.max_calls
                    or self._running.is_ending
                ):
                    self._send(call, task, plain, [])
                else:
                    self._answer_usual(call, task, plain)
                return
        returns: list[Any] = []
        try:
            serialized = self._returns(spec, value)
            del value
            plain = self._plain(spec, serialized)
            if plain is None:
                for index, item in enumerate(serialized):
                    returns.append(self._return_object(call, index + 1, item))
        except BaseException as error:
            with self._env.lock:
                self._give_up(returns)  # a later one failed, and with it the task
            self.finish_error(call, task, describe_error(spec, error, self._running.actor, self._env))
            return
        if plain is not None:
            self._send(call, task, plain, [])
            return
        reply = Reply(status=Reply.DONE, returns=returns, run_us=task.run_us)
        if self._running.actor is not None and spec.type == ACTOR_CREATION_TASK:
            reply.pid = self._env.pid
            reply.repr_name = self._running.actor.repr_name()
        self._send(call, task, reply, serialized)

    def _answer_usual(self, call: Call, task: TaskContext, plain: bytes) -> None:
        """Does what `_send` and `_settle` do, for an answer that nothing precedes or accompanies, where the
        worker goes on. It enters fewer functions, since most calls end here."""
        flush_output()
        is_normal = call.spec.type == NORMAL_TASK
        if is_normal:
            self._board.rest()
        answer = usual_answer(task.run_us, plain)
        kept, lock = self._kept, self._env.lock
        is_concurrent, is_collected = call.is_followed is not None, False
        if is_concurrent:
            # Without the lock, if possible: kept_answers.py.
            if any(self._dropped.queues):
                with lock:
                    self._dropped.drain()
            # Collected before the look: whichever call then follows finds it, and sends it along.
            is_collected = kept.keep(call, answer, is_written=False)
            if self._shares_send(call, task) and is_collected:
                self._env.reactor.flush_soon()
                return
        lock.acquire()  # `with` takes twice as long
        try:
            if any(self._dropped.queues):
                self._dropped.drain()
            is_alone = not (is_normal or is_concurrent)
            if is_alone and self._shares_send(call, task) and kept.keep_alone(call, answer):
                call.answer_to.reply_bytes(answer, rings=False)
                self._env.reactor.flush_soon()
                return
            if kept.collected:
                self._write_collected()
            if not is_collected:
                call.answer_to.send_bytes(answer)
            self._env.reactor.flush()
            if kept.has_some:
                kept.flushed()
        finally:
            lock.release()
        if call.answer_to.connection.has_unsent:
            self._kept.leave(call.answer_to.connection)

    def finish_error(self, call: Call, task: TaskContext, error: BaseException) -> None:
        """Every return becomes the error. It travels inside the reply: in a store it would stay if the task
        runs again."""
        if call.spec.type == ACTOR_CREATION_TASK:
            self._running.end_after_this()
        serialized = serialized_error(call.spec.name, error, self._env.config.error_bytes_max)
        returns = self._error_returns(call, serialized)
        reply = Reply(status=Reply.DONE, returns=returns, is_application_error=True, run_us=task.run_us)
        self._send(call, task, reply, [serialized] * len(returns))

    def answer_anyhow(self, call: Call, error: BaseException) -> None:
        """Our own code failed between the user's code and the answer, by a fault of ours or for lack of
        memory. The caller must not wait for ever. So it is told that, or, if even this fails, the process
        ends. A caller that has the answer already throws this one away.
        """
        try:
            let_frames_go(error)
            text = f"answering {call.spec.name}() failed; {OUR_BUG}, or there is no memory left"
            serialized = serialized_error(
                call.spec.name, RaySystemError(text, users_traceback(error)), self._env.config.error_bytes_max
            )
            returns = self._error_returns(call, serialized)
            reply = Reply(status=Reply.DONE, returns=returns, is_application_error=True)
            self._over(call)
            with self._env.lock:
                self._give_up(returns)
                if call.items is not None:
                    call.items.flush()
                call.answer_to.reply(reply)
                self._env.reactor.flush()
            logger.error("%s\n%s", text, users_traceback(error))
        except BaseException:
            os.write(2, b"a call could not be answered, so this worker ends\n")
            os._exit(ANSWERS_NOBODY)

    def _error_returns(self, call: Call, serialized: serialization.Serialized) -> list[Any]:
        # A generator's caller makes it the last item.
        num_returns = call.spec.num_returns if call.spec.num_returns >= 0 else 1
        return [self._inline_return(call, index + 1, serialized) for index in range(num_returns)]

    def finish_unstarted(self, call: Call, task: TaskContext) -> None:
        """An argument has no room here, and the task goes elsewhere. As at every end it lets go of the
        arguments that it has."""
        self._over(call)
        self._settle(call, task, Reply(status=Reply.NO_ROOM), [])

    def _over(self, call: Call) -> None:
        """Says on the board that the task runs no more, before anybody can have its answer. This process may
        be stopped, or leased to another, as soon as the answer is sent, and then must not look busy.
        """
        if call.spec.type == NORMAL_TASK:
            self._board.rest()

    def _plain(self, spec: KnownSpec, values: list[serialization.Serialized]) -> bytes | None:
        """The one return, if it is one small pickle without references inside."""
        if len(values) != 1 or spec.type == ACTOR_CREATION_TASK:
            return None
        only = values[0]
        is_plain = only.metadata == serialization.PLAIN and not only.nested
        return only.to_bytes() if is_plain and only.size_bytes <= INLINE_BYTES_MAX else None

    def _returns(self, spec: KnownSpec, value: Any) -> list[serialization.Serialized]:
        if spec.type == ACTOR_CREATION_TASK or spec.num_returns == 1:
            return [self._serialize(spec, value)]
        if spec.num_returns < 0:
            if value is not STREAMED:
                raise TypeError(
                    f"{spec.name}() has to be a generator, but it returned a {type(value).__name__}"
                )
            return [serialization.serialize(None)]
        if spec.num_returns == 0:
            return []
        promise = f"{spec.name}() has num_returns={spec.num_returns}"
        if not hasattr(value, "__iter__"):
            raise TypeError(
                f"{promise} but returned a {type(value).__name__}, which cannot be split into several values"
            )
        values = list(value)
        if len(values) != spec.num_returns:
            raise ValueError(f"{promise} but returned {len(values)} values")
        return [self._serialize(spec, item) for item in values]

    def _serialize(self, spec: KnownSpec, value: Any) -> serialization.Serialized:
        if type(value) is Failed:
            return serialization.serialize_error(
                describe_error(spec, value.error, self._running.actor, self._env)
            )
        try:
            return serialization.serialize(value)
        except TypeError as error:
            raise serialization.unpicklable(f"what {spec.name}() returned", value, error) from error

    def _return_object(self, call: Call, index: int, value: serialization.Serialized) -> Any:
        object_id = ids.object_id_bytes(call.task_id, index)
        nested = [self._borrowing.message_of(ref._id) for ref in value.nested]
        if value.size_bytes > INLINE_BYTES_MAX:
            self._plasma.write(object_id, value, call.spec.caller.worker_id)
            return core_worker_pb2.ReturnObject(
                object_id=object_id,
                in_plasma=True,
                size_bytes=value.size_bytes,
                node_id=self._env.node_id,
                nested=nested,
            )
        return self._inline_return(call, index, value)

    def _give_up(self, returns: list[Any]) -> None:
        """The caller will not be told of what was written for these. Lock held."""
        self._plasma.give_up(returned.object_id for returned in returns)

    def _reply(self, call: Call, reply: Any, rings: bool = True) -> None:
        """Answers. Large returns are sealed; if the caller is gone, they go. Lock held."""
        stored = [returned.object_id for returned in reply.returns if returned.in_plasma]
        if stored:
            self._plasma.seal(stored, not call.answer_to.connection.is_closed)
        call.answer_to.reply(reply, rings)

    def _inline_return(self, call: Call, index: int, value: serialization.Serialized) -> Any:
        object_id = ids.object_id_bytes(call.task_id, index)
        nested = [self._borrowing.message_of(ref._id) for ref in value.nested]
        message = common_pb2.SerializedObject(metadata=value.metadata, data=value.to_bytes(), nested=nested)
        return core_worker_pb2.ReturnObject(object_id=object_id, value=message, size_bytes=value.size_bytes)

    def _send(self, call: Call, task: TaskContext, reply: Any, serialized: list[Any]) -> None:
        """Rules 1 and 2, then the reply. reply: a PushTaskReply, or its one plain value as bytes, of which
        the message is made last. serialized: holds the returned references until their receiver is
        registered."""
        flush_output()
        self._over(call)
        if self._running.ends_after(call.spec):
            reply = message_of(task, reply)
            reply.worker_exiting = True
        if call.items is not None:
            items = call.items
            with self._env.lock:
                self._unsettled.waits(call)
                items.when_settled(lambda: self._follow_items(call, task, reply, serialized))
        elif self._settle(call, task, reply, serialized):
            return
        # A coroutine's answer is not waited for: others run beside it all the time.
        if self._unsettled.has_some and not _is_in_loop():
            self._unsettled.give_a_moment(call)
        self._kept.leave(call.answer_to.connection)

    def _follow_items(self, call: Call, task: TaskContext, reply: Any, serialized: list[Any]) -> None:
        """Every item of a generator is on its way or collected, so the answer may follow. Lock held."""
        known(call.items, "the items of a generator").flush()
        call.sends(None)
        self._settle(call, task, reply, serialized, may_wait=False)
        self._unsettled.settled(call)

    def _settle(
        self, call: Call, task: TaskContext, reply: Any, serialized: list[Any], may_wait: bool = True
    ) -> bool:
        """may_wait: whether the answer is all that its caller gets of the call, so that it can be kept.
        Returns whether it is."""
        reactor = self._env.reactor
        with self._env.lock:
            self._dropped.drain()
            if task.held or task.arrived or (serialized and any(value.nested for value in serialized)):
                self._settle_first(call, task, message_of(task, reply), serialized)
                may_wait = False
            elif type(reply) is bytes and len(reply) <= SHORT_MAX:
                reply = usual_answer(task.run_us, reply)
                call.answer_to.reply_bytes(reply, rings=False)
            else:
                reply = message_of(task, reply)
                self._reply(call, reply, rings=False)
            if self._shares_send(call, task) and may_wait and self._kept.keep(call, bytes_of(reply)):
                reactor.flush_soon()
                return True
            self.flush()
            return False

    def flush(self) -> None:
        """All answers that are written or collected leave now. Lock held."""
        self._write_collected()
        self._env.reactor.flush()
        if self._kept.has_some:
            self._kept.flushed()

    def _write_collected(self) -> None:
        collected = self._kept.collected
        while collected:
            call, answer = collected.popleft()
            try:
                call.answer_to.reply_bytes(answer, rings=False)
            except BaseException as error:
                self.answer_anyhow(call, error)

    def _shares_send(self, call: Call, task: TaskContext) -> bool:
        """Whether its answer may wait for those that follow. Lock held, but for a call of a concurrent actor.

        A normal task's goes out before the next task starts, so that its owner knows which task a crash
        struck. Answers of an actor's short calls may share a send; the leader does not let it wait for the
        end of the next call. If that ends the process, they are on the board (kept_answers.py).
        """
        spec = call.spec
        is_short = task.run_us < self._alone_us
        if task.has_run and spec.is_short != is_short:
            spec.ran(is_short)
        self._num_unflushed += 1
        if spec.type == ACTOR_TASK and spec.is_short and self._num_unflushed < self._unflushed_max:
            if call.is_followed is None:
                queue = self._receiver.queue
                is_followed = bool(queue) and queue[0] is not None and queue[0].spec.is_short
            else:
                is_followed = call.is_followed()
            if is_followed:
                return True
        self._num_unflushed = 0
        return False

    def _settle_first(self, call: Call, task: TaskContext, reply: Any, serialized: list[Any]) -> None:
        """There are references, so the call is answered when their owners know who has them. Lock held."""
        spec = call.spec
        kept: list[bytes] = []
        # What to undo when it is settled.
        lending = contextlib.ExitStack()

        def settled(borrowed: list[common_pb2.ObjectReference]) -> None:
            reply.borrowed.extend(borrowed)
            self._references.remove_submitted(task.held or ())
            self._reply(call, reply)
            self._borrowing.named(borrowed, call.answer_to.connection)
            self._references.remove_submitted(kept)
            self._unsettled.settled(call)
            lending.close()

        def handed_over() -> None:
            for value in serialized:
                value.nested.clear()
            self._dropped.drain()
            self._borrowing.settle_arrived(task.arrived or {}, kept, spec.caller.worker_id, settled)

        self._unsettled.waits(call)
        if spec.type == NORMAL_TASK:
            self._lend_later(lending)
        self._hand_over(call, reply, serialized, kept, handed_over)

    def _lend_later(self, lending: contextlib.ExitStack) -> None:
        unsettled_s = self._env.config.unsettled_s
        lending.callback(self._env.reactor.call_later(unsettled_s, lambda: self._lend(lending)).cancel)

    def _lend(self, lending: contextlib.ExitStack) -> None:
        """A reply waits still. Lock held."""
        lending.pop_all()  # the timer that called this
        if self._receiver.is_resting:
            lending.callback(self._blocked.unblock, self._blocked.block())
        else:
            self._lend_later(lending)

    def _hand_over(
        self, call: Call, reply: Any, serialized: list[Any], kept: list[bytes], then: Callable[[], None]
    ) -> None:
        waiting = 1

        def one() -> None:
            nonlocal waiting
            waiting -= 1
            if waiting == 0:
                then()

        for returned, value in zip(reply.returns, serialized, strict=False):
            if value.nested:
                waiting += 1
                nested = dict.fromkeys(ref._id for ref in value.nested)
                kept.extend(self._borrowing.hand_over(nested, returned.object_id, call.spec.caller, one))
        one()


def _is_in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def message_of(task: TaskContext, reply: Any) -> Any:
    """See TaskReplies._send."""
    return Reply(plain=reply, run_us=task.run_us) if type(reply) is bytes else reply


def bytes_of(answer: Any) -> bytes:
    return answer if type(answer) is bytes else answer.SerializeToString()


def flush_output() -> None:
    """User code may have closed or replaced its output, which is no reason to lose an answer."""
    # Without a loop, and without suppress(), which would cost every task a microsecond.
    try:  # noqa: SIM105
        sys.stdout.flush()
    except BaseException:
        pass
    try:  # noqa: SIM105
        sys.stderr.flush()
    except BaseException:
        pass


def serialized_error(name: str, error: BaseException, bytes_max: int) -> serialization.Serialized:
    """The error value of a call of `name`() that failed with `error`. If that is too large to travel, or
    cannot be serialized, the value says what is known of it."""
    try:
        serialized = serialization.serialize_error(error)
        if serialized.size_bytes <= bytes_max:
            return serialized
        size = f"{serialized.size_bytes >> 20} MiB"
        why = f"an error of {size}, which is more than an error may have ({bytes_max >> 20} MiB)"
    except BaseException as failure:
        why = f"an error that cannot be sent ({text_of(failure)}): {str_of(error)}"
    return serialization.serialize_error(RaySystemError(f"{name}() raised {name_of(error)}, {why}"))
