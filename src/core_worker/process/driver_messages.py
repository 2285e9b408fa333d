"""What the cluster says to a driver: the errors of its job, and the output of the job's workers. A thread of
its own shows them, since standard output may block.

What workers wrote before the driver leaves is shown before it is gone. Workers write line by line into files,
and flush them before they answer; log monitors publish what is in the files. So the driver asks the monitors
for the end of what is there:

    driver ──LogFlush(token)──► GCS ──► every log monitor      the GCS answers how many it reached
    driver ◄── GCS ◄── lines …, LogFlushed(token, 0 bytes)     from each monitor, behind its last line

When all of them have said so, nothing is left. The driver waits while something comes, but no longer than
FLUSH_TIMEOUT_S in all. Then it tells what was left out.

Lines may come faster than the driver shows them, as when its terminal is stopped. Then it has them wait in
their files: LogFlush(hold).
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
from collections.abc import Callable

from ray_mono.common.our_bug import known
from ray_mono.common.output import write_text
from ray_mono.core_worker.environment import Environment
from ray_mono.protobuf import common_pb2, gcs_pb2
from ray_mono.rpc.reactor import Waiter
from ray_mono.rpc.surface import RpcError

FLUSH_TIMEOUT_S = 30.0
# If nothing comes for so long, nothing more will.
SILENCE_S = 5.0
# A node's log monitor is its last process to start, and nobody waits for it. So a short program may have to
# ask again.
NO_MONITOR_S = 3.0
ASK_AGAIN_PERIOD_S = 0.02
# Messages wait to be shown, each of 256 KiB at most. Above WAITING_MAX of them the driver has the others wait
# in their files, and below WAITING_MIN it asks for more again.
WAITING_MAX = 200
WAITING_MIN = 20
# How long the thread may take to put away what it does not show any more.
STOP_TIMEOUT_S = 2.0


class DriverMessages:
    """The messages to one driver."""

    def __init__(
        self,
        env: Environment,
        job_id: bytes,
        on_error: Callable[[common_pb2.ErrorInfo], None] | None,
        on_log: Callable[[common_pb2.LogBatch], None] | None,
    ) -> None:
        """on_error and on_log show what comes. Where one is None, its messages are not asked for."""
        self._env = env
        self._job_id = job_id
        self._on_error = on_error
        self._on_log = on_log
        self._queue: queue.SimpleQueue[gcs_pb2.PubMessage | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ray_mono-messages", daemon=True)
        self._is_cut_off = False
        self._is_behind = False
        self._token = b""
        # By node: how many bytes its log monitor has still to read, as it answered.
        self._unread: dict[bytes, int] = {}
        # By node: the latest batch of lines that came from its log monitor.
        self._latest: dict[bytes, int] = {}
        self._waiter: Waiter | None = None
        self._must_ask_again = False
        self._num_taken = 0
        # Whether a message is being shown. That takes long where standard output takes nothing.
        self._is_showing = False
        self._is_stopped = False
        # From now on lines are counted, not shown.
        self._is_over = False
        self._lines_left = 0

    def subscribe(self) -> None:
        job_id = self._job_id
        channels = []
        if self._on_error is not None:
            channels.append(gcs_pb2.ChannelFilter(channel=gcs_pb2.ERROR, keys=[job_id, b""]))
        if self._on_log is not None:
            channels.append(gcs_pb2.ChannelFilter(channel=gcs_pb2.LOG, keys=[job_id]))
        if channels:
            self._thread.start()
            self._env.gcs.Subscribe.start(
                gcs_pb2.SubscribeRequest(channels=channels), self._came, self._ended
            )

    def flush(self) -> None:
        """Shows what the job's workers have written so far, or says what was left out. Raises
        KeyboardInterrupt, but only after that."""
        if self._on_log is None or self._env.reactor.is_closed:
            return
        try:
            why = self._flush()
        except RpcError as error:
            why = f"the GCS does not answer: {error.message}"
        except KeyboardInterrupt:
            self._give_up("it was interrupted")
            raise
        if why:
            self._give_up(why)

    def gcs_is_back(self) -> None:
        """The monitors may not have heard what was asked. Lock held."""
        self._must_ask_again = True
        if self._waiter is not None:
            self._waiter.set()

    def stop(self) -> None:
        """Shows what is here already. A second call does not wait again for a thread that hangs."""
        if self._thread.is_alive() and not self._is_stopped:
            self._is_stopped = True
            self._queue.put(None)
            self._thread.join(STOP_TIMEOUT_S)

    # ---- the end

    def _flush(self) -> str:
        """Waits until everything is shown. Returns why it was not; empty if it was. Raises RpcError."""
        deadline_s = self._env.clock.time_s() + FLUSH_TIMEOUT_S
        num_monitors = self._ask()
        if not num_monitors:
            return f"no log monitor has answered for {NO_MONITOR_S:g} s"
        num_taken = -1
        while not self._is_flushed(num_monitors):
            if self._must_ask_again:
                self._must_ask_again, num_taken = False, -1
                num_monitors = max(num_monitors, self._ask())
            left_s = deadline_s - self._env.clock.time_s()
            if self._is_cut_off:
                return "the connection to the GCS is lost"
            if left_s <= 0 or num_taken == self._num_taken:
                what = "standard output did not take it" if self._is_showing else "it did not come"
                return f"{what} within {SILENCE_S if left_s > 0 else FLUSH_TIMEOUT_S:g} s"
            num_taken = self._num_taken
            waiter = Waiter(self._env.reactor)
            self._waiter = waiter
            if not self._is_flushed(num_monitors):
                self._env.reactor.wait(waiter, min(SILENCE_S, left_s))
        return ""

    def _ask(self) -> int:
        """Asks the log monitors. Returns how many were asked, 0 if there is none. Raises RpcError."""
        env = self._env
        self._token = os.urandom(8)
        self._unread.clear()
        request = self._request(token=self._token)
        give_up_s = self._env.clock.time_s() + NO_MONITOR_S
        while not (reached := env.gcs.Publish(request, timeout_s=SILENCE_S).reached):
            if self._env.clock.time_s() > give_up_s:
                return 0
            env.reactor.wait(Waiter(env.reactor), ASK_AGAIN_PERIOD_S)
        return reached

    def _is_flushed(self, num_monitors: int) -> bool:
        return list(self._unread.values()).count(0) >= num_monitors

    def _give_up(self, why: str) -> None:
        self._is_over = True
        self.stop()
        with contextlib.suppress(queue.Empty):
            while True:  # what is left where the thread hangs in its last write
                self._count(self._queue.get_nowait())
        left = [f"{self._lines_left:,} lines"] if self._lines_left else []
        if unread_bytes := sum(self._unread.values()):
            left.append(f"{unread_bytes:,} bytes that were not sent yet")
        what = f"{' and '.join(left)} were not shown" if left else "what they wrote last may be missing here"
        text = (
            f"Not all output of workers came here, since {why}: {what}."
            f" All of it is in {self._env.session_dir}/logs of each node."
        )
        if self._on_error is not None:
            self._on_error(common_pb2.ErrorInfo(message=text))

    def _request(self, token: bytes = b"", hold: bool = False) -> gcs_pb2.PublishRequest:
        """A message to every log monitor."""
        job_id = self._job_id
        flush = common_pb2.LogFlush(job_id=job_id, token=token, hold=hold)
        message = gcs_pb2.PubMessage(channel=gcs_pb2.LOG_FLUSH, key=job_id, payload=flush.SerializeToString())
        return gcs_pb2.PublishRequest(message=message)

    # ---- what comes

    def _came(self, message: gcs_pb2.PubMessage) -> None:
        """The GCS has published a message. Lock held."""
        self._queue.put(message)
        if not self._is_behind and self._queue.qsize() > WAITING_MAX:
            self._is_behind = True
            self._env.gcs.Publish.notify(self._request(hold=True))

    def _caught_up(self) -> None:
        with self._env.lock:
            self._is_behind = False
            self._env.gcs.Publish.notify(self._request(hold=False))

    # ---- the thread

    def _ended(self, error: RpcError | None) -> None:
        self._is_cut_off = True

    def _run(self) -> None:
        while (message := self._queue.get()) is not None:
            if self._is_over:
                self._count(message)
                continue
            # Counted first: whoever is woken by the message looks whether any came.
            self._num_taken += 1
            self._is_showing = True
            try:
                self._show(message)
            except Exception as error:
                write_text(sys.stderr, f"(ray_mono) a message of the cluster could not be shown: {error}\n")
            self._is_showing = False
            if self._is_behind and self._queue.qsize() < WAITING_MIN:
                self._caught_up()

    def _show(self, message: gcs_pb2.PubMessage) -> None:
        if message.channel == gcs_pb2.ERROR:
            known(self._on_error, "what shows errors")(common_pb2.ErrorInfo.FromString(message.payload))
            return
        batch = common_pb2.LogBatch.FromString(message.payload)
        if batch.HasField("flushed"):
            self._note(batch)
        elif self._is_new(batch):
            known(self._on_log, "what shows output")(batch)

    def _is_new(self, batch: common_pb2.LogBatch) -> bool:
        """Whether it has not come before. Log monitors tell some again after the GCS was away."""
        if batch.sequence and batch.sequence <= self._latest.get(batch.node_id, 0):
            return False
        self._latest[batch.node_id] = batch.sequence
        return True

    def _note(self, batch: common_pb2.LogBatch) -> None:
        """A log monitor says how much it has still to read."""
        if batch.flushed.token != self._token:
            return
        self._unread[batch.node_id] = batch.flushed.unread_bytes
        waiter = self._waiter
        if waiter is not None and not batch.flushed.unread_bytes:
            with self._env.lock:
                waiter.set()

    def _count(self, message: gcs_pb2.PubMessage | None) -> None:
        if message is not None and message.channel == gcs_pb2.LOG:
            batch = common_pb2.LogBatch.FromString(message.payload)
            if batch.HasField("flushed"):
                self._note(batch)
            elif self._is_new(batch):
                self._lines_left += len(batch.lines)
