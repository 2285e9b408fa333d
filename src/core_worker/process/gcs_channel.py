"""The GCS as a core worker calls it: a channel that outlives the head.

    CONNECTED ──the connection ends──► AWAY ──the GCS answers again──► CONNECTED
                                        └──for as long as a raylet waits──► LOST ──likewise──► CONNECTED

A head that died is started again, in the same place or in another, with what it had stored. The node's raylet
finds it and registers there. Then it says where that is (`AwaitHead`), and this connects, subscribes again,
and sends once more what has no answer, in its order. So the GCS may get a call twice, and each of its calls
bears that (gcs.proto says how). Those that must not be done twice (ONCE) carry a number for it.

A head that lost its store is another cluster to itself (its id says so). Once the raylet is registered there,
which names its processes, it is first told what the one before knew of this one (`on_other_cluster`), and
then what has no answer.

A process that has just started asks nothing before its raylet says that it is registered at a head. One on an
empty store that has not heard of the node does not know what is asked, and a job that begins there would make
it a new cluster.

A head that was stopped holds its connections. If another one takes over meanwhile, the raylet says so, and
the connection to the old one counts as lost.

What is called while the head is away waits for it. Where somebody has waited for WARN_AFTER_S, one line says
for what. A call's own time does not run while the head is away. A process that is leaving waits for a head
only as long as its reaper needs to start it again.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from ray_mono.common.backoff import Backoff
from ray_mono.common.our_bug import check
from ray_mono.common.world import Clock
from ray_mono.core_worker.environment import ReactorInterface, TimerHandle
from ray_mono.core_worker.process.gcs_calls import (
    ONCE,
    WANTED,
    Call,
    FromString,
    Method,
    OnDone,
    ToString,
    answers_late,
)
from ray_mono.protobuf import common_pb2, gcs_pb2
from ray_mono.protobuf.gcs_rpc import GcsServiceStub
from ray_mono.rpc.reactor import Waiter
from ray_mono.rpc.reactor_channel import ReactorChannel
from ray_mono.rpc.surface import RpcError, StatusCode, take_answer

logger = logging.getLogger(__name__)

NOTICES_MAX = 1_000
"""One-way messages that wait for a head that is away; above it the oldest is dropped."""
RETRY_FIRST_S = 0.02
RETRY_MAX_S = 0.5
"""Pauses after the raylet has named a GCS that cannot be reached."""
BACK_AFTER_S = WARN_AFTER_S = 2.0
"""A head that is started again by its reaper is back before that."""

OnEnd = Callable[[RpcError | None], None]


class GcsState(enum.Enum):
    CONNECTED = "connected"
    AWAY = "away"
    LOST = "lost"


_MOVES = {
    (GcsState.CONNECTED, GcsState.AWAY),
    (GcsState.AWAY, GcsState.CONNECTED),
    (GcsState.AWAY, GcsState.LOST),
    (GcsState.LOST, GcsState.CONNECTED),
}


class GcsChannel:
    """The GCS's channel of one process. Lock held, but for the methods of its stub."""

    def __init__(
        self,
        reactor: ReactorInterface,
        clock: Clock,
        connect: Callable[[str, str], ReactorChannel],
        await_head: Callable[[int, OnDone], None],
        address: str,
        worker_id: bytes,
        is_driver: bool,
    ) -> None:
        """connect(address, name of the peer) starts to connect, and may return a channel that is closed.

        await_head(number, on_done) has this node's raylet answer an AwaitHead. address: where the GCS was
        when this process started. worker_id: this process's.
        """
        self.reactor = reactor
        self.clock = clock
        self._connect = connect
        self._await_head = await_head
        self._address = address
        self._worker_id = worker_id
        self._is_driver = is_driver
        self._state = GcsState.CONNECTED
        self._is_closed = False
        # In the order of their starts.
        self._calls: dict[int, Call] = {}
        self._streams: dict[int, Call] = {}
        # Of these, those of ONCE; in their order.
        self._once: dict[int, None] = {}
        self._num_started = 0
        # Of the present connection: what ends its streams.
        self._enders: dict[int, Callable[[], None]] = {}
        self._since_s = clock.time_s()
        """Of the present state; of LOST, since it was AWAY."""
        self._reason = self._why_no_raylet = ""
        self._patience_s = 60.0
        self._end_of_patience: TimerHandle | None = None
        self._is_looking = False
        self._has_warned = False
        self._retries = Backoff(RETRY_FIRST_S, RETRY_MAX_S)
        self._on_return: list[Callable[[], None]] = []
        self._on_other_cluster: list[Callable[[], None]] = []
        self._head_number = 0
        self._cluster_id = b""
        # Whether this node's raylet has said that it is registered at one.
        self._may_ask = False
        # Whether such a head came when nobody was there to tell it.
        self._has_untold = False
        self._channel = connect(address, "the GCS")
        self._bind(self._channel)
        await_head(0, self._heard)

    # ---- what stubs use

    def unary_unary(
        self, path: str, request_serializer: ToString, response_deserializer: FromString
    ) -> GcsMethod:
        return GcsMethod(self, self.reactor, Method(path, request_serializer, response_deserializer))

    def unary_stream(
        self, path: str, request_serializer: ToString, response_deserializer: FromString
    ) -> GcsStream:
        return GcsStream(self, Method(path, request_serializer, response_deserializer))

    # ---- what this process says

    @property
    def who(self) -> str:
        return f"the GCS at {self._address}"

    def joined(self, timeout_s: float, cluster_id: bytes) -> None:
        """What this node's raylet said when it took this process: how long a head may be away, and which it
        knows."""
        self._patience_s = timeout_s
        self._cluster_id = cluster_id

    def on_return(self, callback: Callable[[], None]) -> None:
        """callback() runs each time that the head is back, after the subscriptions were made again: what was
        published meanwhile was missed."""
        self._on_return.append(callback)

    def on_other_cluster(self, callback: Callable[[], None]) -> None:
        """callback() runs when the head that is back knows nothing of this process: what it starts goes ahead
        of what has no answer."""
        self._on_other_cluster.append(callback)
        if self._has_untold:
            callback()

    def leave(self) -> None:
        """This process is leaving: a head that is away is waited for until BACK_AFTER_S after it went."""
        self._patience_s = min(self._patience_s, BACK_AFTER_S)
        if self._state is GcsState.AWAY:
            self._cancel_patience()
            self._be_patient(self._since_s + self._patience_s - self.clock.time_s())

    def raylet_lost(self, reason: str) -> None:
        """This node's raylet is gone: nobody finds another head for this process."""
        self._why_no_raylet = reason
        if self._state is GcsState.AWAY:
            self._reason = reason

    def close(self, reason: str) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._cancel_patience()
            self._channel.close(reason)
            self._fail_all(RpcError(StatusCode.UNAVAILABLE, reason))

    def deadline_s(self, started_s: float, timeout_s: float) -> float:
        """Until when a call that was started then waits for its answer."""
        if self._state is GcsState.CONNECTED:
            return max(started_s, self._since_s) + timeout_s
        return max(started_s + timeout_s, self._since_s + self._patience_s + timeout_s)

    # ---- calls

    def start(
        self,
        method: Method,
        request: Any,
        on_done: OnDone,
        on_item: Callable[[Any], None] | None = None,
        is_notice: bool = False,
    ) -> int:
        """Returns the number by which `forget` knows it. Arguments: as in Call; the request is this
        channel's."""
        name = method.path.rpartition("/")[2]
        wanted = WANTED.get(name, "")
        is_late = answers_late(request)
        call = Call(method, request, on_done, on_item, is_notice, self.clock.time_s(), wanted, is_late)
        number = self._num_started = self._num_started + 1
        if self._is_closed or self._state is GcsState.LOST:
            call.on_done(None, self._error())
            return number
        if name in ONCE:
            self._once[number] = None
            request_id = gcs_pb2.RequestId(
                caller=self._worker_id, number=number, answered_below=next(iter(self._once))
            )
            request.MergeFrom(type(request)(request_id=request_id))
        if call.on_item is not None:
            self._streams[number] = call
        else:
            self._calls[number] = call
        if call.wanted:
            self._look_later()
        if self._state is GcsState.CONNECTED and self._may_ask:
            self._send(number, call)
        elif call.is_notice:
            self._drop_notices()
        return number

    def forget(self, number: int) -> None:
        """Nobody waits for this answer any more. A stream is ended."""
        self._calls.pop(number, None)
        self._once.pop(number, None)
        self._streams.pop(number, None)
        end = self._enders.pop(number, None)
        if end is not None:
            end()

    def _send(self, number: int, call: Call) -> None:
        channel, method = self._channel, call.method
        if call.on_item is None:
            sender = channel.unary_unary(method.path, method.to_string, method.from_string)
            sender.start(call.request, partial(self._answered, number))
            return
        stream = channel.unary_stream(method.path, method.to_string, method.from_string)
        end = stream.start(call.request, call.on_item, lambda error: self._ended(number, error))
        if number in self._streams:
            self._enders[number] = end

    def _answered(self, number: int, reply: Any, error: RpcError | None) -> None:
        """A GCS that cannot store any more is about to end, and says UNAVAILABLE too."""
        if error is not None and error.code is StatusCode.UNAVAILABLE and not self._is_closed:
            return
        call = self._calls.pop(number, None)
        self._once.pop(number, None)
        if call is not None:
            self._tell_if_back()
            call.on_done(reply, error)

    def _ended(self, number: int, error: RpcError | None) -> None:
        self._enders.pop(number, None)
        if error is not None and error.code is StatusCode.UNAVAILABLE and not self._is_closed:
            return
        stream = self._streams.pop(number, None)
        if stream is not None:
            stream.on_done(None, error)

    def _drop_notices(self) -> None:
        notices = [number for number, call in self._calls.items() if call.is_notice]
        if len(notices) > NOTICES_MAX:
            del self._calls[notices[0]]

    # ---- the connection

    def _move(self, state: GcsState) -> None:
        """The one place where the state changes. Raises InternalError."""
        check((self._state, state) in _MOVES, f"{self.who}: {self._state.value} -> {state.value}")
        self._state = state

    def _bind(self, channel: ReactorChannel) -> None:
        channel.on_close(lambda reason: self._lost(channel, reason))

    def _lost(self, channel: ReactorChannel, reason: str) -> None:
        """A connection ended, or came to nothing."""
        if self._is_closed or channel is not self._channel:
            return
        if self._state is GcsState.CONNECTED:
            self._move(GcsState.AWAY)
            self._since_s, self._reason = self.clock.time_s(), reason
            self._look_later()
            self._retries.reset()
            self._be_patient(self._patience_s)
            self._find()
        else:
            self.reactor.call_later(self._retries.next_s(), self._find)

    def _find(self) -> None:
        if not self._is_closed:
            self._await_head(0, self._found)

    def _found(self, found: Any, error: RpcError | None) -> None:
        """The raylet is registered at a GCS, or will never be again."""
        if self._is_closed:
            return
        if error is not None:
            # Why the raylet is gone is told right after the ends of its calls.
            self._reason = self._why_no_raylet or error.message
            self.reactor.call_later(0.0, self._give_up)
            return
        self._address, self._head_number = found.address, found.head_number
        self._channel = channel = self._connect(found.address, "the GCS")
        self._bind(channel)
        if not channel.is_closed:
            # The first answer shows that it is there.
            back = partial(self._back, channel, found.cluster_id)
            GcsServiceStub(channel).GetClusterInfo.start(common_pb2.Empty(), back)

    def _heard(self, head: Any, error: RpcError | None) -> None:
        """The raylet is registered at a head that is new to us. While this looks for one itself, that is no
        news."""
        if self._is_closed:
            return
        if self._state is GcsState.CONNECTED:
            cluster_id = self._cluster_id if error is not None else head.cluster_id
            if self._may_ask:
                self._is_of(cluster_id)
            else:
                self._ask_all(cluster_id)
        if error is not None:
            return
        is_known, self._head_number = self._head_number > 0, max(self._head_number, head.head_number)
        if is_known and head.address != self._address and self._state is GcsState.CONNECTED:
            self._channel.close("another head has taken over")
        self._await_head(self._head_number, self._heard)

    def _back(self, channel: ReactorChannel, cluster_id: bytes, info: Any, error: RpcError | None) -> None:
        if self._is_closed or channel is not self._channel:
            return
        if error is not None:
            channel.close(error.message)
            return
        if info.cluster_id != cluster_id:
            # Its raylet, which has yet to see that the head is another one, tells it of this process first.
            channel.close("the node's raylet is not registered there yet")
            return
        self._cancel_patience()
        now_s = self.clock.time_s()
        logger.debug("the head is back after %.3f s: %s", now_s - self._since_s, self.who)
        self._move(GcsState.CONNECTED)
        self._since_s = now_s
        self._ask_all(info.cluster_id)
        for callback in self._on_return:
            callback()
        self._tell_if_back()

    def _ask_all(self, cluster_id: bytes) -> None:
        """The head is of this cluster, and there is all asked that has no answer."""
        unanswered = [*self._streams.items(), *self._calls.items()]
        self._may_ask = True
        self._is_of(cluster_id)
        channel = self._channel
        for number, call in unanswered:
            if not channel.is_closed:
                self._send(number, call)

    def _is_of(self, cluster_id: bytes) -> None:
        """The head is of this cluster. Tells it what the one before knew, where that was of another."""
        is_other, self._cluster_id = self._cluster_id not in (b"", cluster_id), cluster_id
        if is_other:
            self._has_untold = not self._on_other_cluster
            for callback in self._on_other_cluster:
                callback()

    # ---- whoever waits

    def _waited_for(self) -> list[Call]:
        """By somebody. While the head is there, not what it answers when something has happened."""
        is_there = self._state is GcsState.CONNECTED
        return [call for call in self._calls.values() if call.wanted and not (is_there and call.is_late)]

    def _tell_if_back(self) -> None:
        if self._has_warned and not self._waited_for():
            self._has_warned = False
            self._tell("The head answers again: %s.", self.who)

    def _look_later(self) -> None:
        if not self._is_looking:
            self._is_looking = True
            self.reactor.call_later(WARN_AFTER_S, self._look)

    def _look(self) -> None:
        """Whether somebody has waited for long. Says so once, until the head answers."""
        self._is_looking = False
        calls = self._waited_for()
        if not calls or self._has_warned or self._is_closed:
            return
        if self.clock.time_s() - min(call.started_s for call in calls) < WARN_AFTER_S:
            self._look_later()
            return
        self._has_warned = True
        what = ", ".join(dict.fromkeys(call.wanted for call in calls))
        if self._state is GcsState.CONNECTED:
            trouble = f"has not answered for {WARN_AFTER_S:g} s"
        else:
            trouble = f"is away ({self._reason}) and is waited for, {self._patience_s:g} s at most"
        self._tell(
            "The head (%s) %s. These wait for it: %s. Functions and actors that are known can be called all "
            "the same.",
            self.who,
            trouble,
            what,
        )

    def _tell(self, text: str, *arguments: object) -> None:
        """Tells the user of a driver. In a worker it is for whoever looks for trouble there."""
        logger.log(logging.WARNING if self._is_driver else logging.DEBUG, text, *arguments)

    def _be_patient(self, left_s: float) -> None:
        self._end_of_patience = self.reactor.call_later(max(0.0, left_s), self._give_up)

    def _give_up(self) -> None:
        if self._is_closed or self._state is not GcsState.AWAY:
            return
        self._move(GcsState.LOST)
        self._fail_all(self._error())

    def _error(self) -> RpcError:
        if self._is_closed:
            return self._channel.error()
        away_s = self.clock.time_s() - self._since_s
        return RpcError(
            StatusCode.UNAVAILABLE,
            f"{self.who} is gone: it has been away for {away_s:.1f} s ({self._reason})",
        )

    def _fail_all(self, error: RpcError) -> None:
        failed = [*self._calls.values(), *self._streams.values()]
        self._calls, self._streams, self._once = {}, {}, {}
        for call in failed:
            call.on_done(None, error)

    def _cancel_patience(self) -> None:
        if self._end_of_patience is not None:
            self._end_of_patience.cancel()
            self._end_of_patience = None


class GcsMethod:
    """One unary method. See surface.UnaryUnary."""

    __slots__ = ("_channel", "_method", "_reactor")

    def __init__(self, channel: GcsChannel, reactor: ReactorInterface, method: Method) -> None:
        self._channel = channel
        self._reactor = reactor
        self._method = method

    def start(self, request: Any, on_done: OnDone, on_part: Callable[[Any], None] | None = None) -> None:
        """No method of the GCS has early parts."""
        with self._reactor.lock:
            self._channel.start(self._method, request, on_done)

    def notify(self, request: Any) -> None:
        """Is sent again like a call, so that it is not lost with the head. The answer is thrown away."""
        with self._reactor.lock:
            self._channel.start(self._method, request, lambda reply, error: None, is_notice=True)

    def __call__(self, request: Any, timeout_s: float | None = None) -> Any:
        """timeout_s runs while the head is there."""
        channel = self._channel
        reactor, clock = self._reactor, channel.clock
        waiter = Waiter(reactor)
        result: list[tuple[Any, RpcError | None]] = []

        def done(reply: Any, error: RpcError | None) -> None:
            result.append((reply, error))
            waiter.set()

        started_s = clock.time_s()
        with reactor.lock:
            number = channel.start(self._method, request, done)
        try:
            while not result:
                left_s = None
                if timeout_s is not None:
                    with reactor.lock:
                        left_s = channel.deadline_s(started_s, timeout_s) - clock.time_s()
                    if left_s <= 0:
                        raise RpcError(
                            StatusCode.DEADLINE_EXCEEDED,
                            f"{channel.who} did not answer {self._method.path} within {timeout_s} s",
                        )
                reactor.wait(waiter, left_s)
                if reactor.is_closed and not result:
                    message = f"{self._method.path}: this process disconnected meanwhile"
                    raise RpcError(StatusCode.CANCELLED, message)
        finally:
            with reactor.lock:
                channel.forget(number)
        return take_answer(result)


class GcsStream:
    """One streaming method. See surface.UnaryStream. It goes on at the head that comes next."""

    __slots__ = ("_channel", "_method")

    def __init__(self, channel: GcsChannel, method: Method) -> None:
        self._channel = channel
        self._method = method

    def start(self, request: Any, on_item: Callable[[Any], None], on_end: OnEnd) -> Callable[[], None]:
        channel = self._channel

        def ended(reply: Any, error: RpcError | None) -> None:
            on_end(error)

        with channel.reactor.lock:
            number = channel.start(self._method, request, ended, on_item)

        def end() -> None:
            with channel.reactor.lock:
                channel.forget(number)

        return end
