"""The code of a job, and what its workers set up before they run any of it. Both are the GCS's tables. The
processes that submit tasks know their part of them, too:

    worker ──KvGet, GetJob, KvKeys──► GCS                   it answers in less than a millisecond, usually
       └── PATIENCE_S later, or where that does not know it ──► whoever submitted the task (GetExportedCode,
                                                                GetJobSetup)

So a function runs also on workers that have not run it yet while the head is away, and even a new one does.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ray_mono.core_worker.context import WorkerContext
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.peers import PeerPool
from ray_mono.protobuf import common_pb2, core_worker_pb2, gcs_pb2
from ray_mono.rpc.reactor import Waiter
from ray_mono.rpc.surface import RpcError, StatusCode, take_answer

PATIENCE_S = 0.1
"""A GCS that takes longer is busy, stopped or away."""
KEPT_BYTES_MAX = 64 << 20
"""Of exported code. The oldest goes first: then the GCS alone has it, and loses it with its store."""
NOT_FOUND, UNAVAILABLE = StatusCode.NOT_FOUND, StatusCode.UNAVAILABLE
RUNS = b"run"
"""The KV namespace of functions that every worker runs (worker_runs.py)."""

OnDone = Callable[[Any, RpcError | None], None]


@dataclass(frozen=True)
class JobSetup:
    """What a worker has to know before the first task of a job."""

    namespace: str
    config_json: str
    run_keys: Sequence[bytes]
    """Of functions that every worker of the job runs first."""
    found: bool = True


class JobCode:
    """Of one process: what it exported, and its way to what others did."""

    def __init__(
        self, env: Environment, context: WorkerContext, peers: PeerPool, run_keys: Sequence[bytes]
    ) -> None:
        """run_keys: those that this process knows of. The list grows."""
        self._env = env
        self._context = context
        self._peers = peers
        self._run_keys = run_keys
        self._exported: OrderedDict[tuple[bytes, bytes], bytes] = OrderedDict()
        self._exported_bytes = 0

    # ---- who exports

    def export(self, namespace: bytes, key: bytes, code: bytes) -> None:
        """Puts code into the table. A GCS that does not answer soon gets it later. Raises RpcError where it
        refuses it."""
        env = self._env
        request = gcs_pb2.KvPutRequest(namespace=namespace, key=key, value=code, overwrite=False)
        waiter = Waiter(env.reactor)
        answers: list[tuple[Any, RpcError | None]] = []

        def answered(reply: Any, error: RpcError | None) -> None:
            answers.append((reply, error))
            waiter.set()

        self.keep(namespace, key, code)
        env.gcs.KvPut.start(request, answered)
        env.reactor.wait(waiter, PATIENCE_S)
        if answers:
            take_answer(answers)

    def keep(self, namespace: bytes, key: bytes, code: bytes) -> None:
        """For those who run tasks of this process."""
        with self._env.lock:
            if (namespace, key) in self._exported:
                return
            self._exported[namespace, key] = code
            self._exported_bytes += len(code)
            while self._exported_bytes > KEPT_BYTES_MAX:
                _, dropped = self._exported.popitem(last=False)
                self._exported_bytes -= len(dropped)

    def export_again(self) -> None:
        """For a GCS that has lost it. Lock held."""
        for (namespace, key), code in self._exported.items():
            request = gcs_pb2.KvPutRequest(namespace=namespace, key=key, value=code, overwrite=False)
            self._env.gcs.KvPut.start(request, lambda reply, error: None)

    def GetExportedCode(self, request: Any, call: Any) -> None:
        """Lock held."""
        code = self._exported.get((request.namespace, request.key))
        call.reply(core_worker_pb2.GetExportedCodeReply(found=code is not None, value=code or b""))

    def GetJobSetup(self, request: Any, call: Any) -> None:
        """Lock held."""
        job = self._context.job
        setup = core_worker_pb2.GetJobSetupReply(
            found=job.job_id == request.job_id,
            namespace=job.namespace,
            config_json=job.config_json,
            run_keys=self._run_keys,
        )
        call.reply(setup)

    # ---- who runs it

    def fetch(self, namespace: bytes, key: bytes, caller: common_pb2.Address) -> bytes | None:
        """Code of the table, as the GCS or the caller has it; None where the GCS has none. Raises RpcError
        where neither answers."""
        gcs = self._env.gcs
        request = gcs_pb2.KvGetRequest(namespace=namespace, key=key)
        asked = core_worker_pb2.GetExportedCodeRequest(namespace=namespace, key=key)

        def ask_caller(done: OnDone) -> None:
            self._peers.stub_for(caller).GetExportedCode.start(asked, done)

        what = f"the key {key.hex()}"
        reply = self._first(lambda done: gcs.KvGet.start(request, done), ask_caller, what)
        return bytes(reply.value) if reply.found else None

    def setup(self, job_id: bytes, caller: common_pb2.Address) -> JobSetup:
        """Raises RpcError where neither the GCS nor the caller answers."""
        gcs = self._env.gcs

        def ask_gcs(done: OnDone) -> None:
            def keys_known(job: Any, reply: Any, error: RpcError | None) -> None:
                done(None if error else JobSetup(job.namespace, job.config_json, list(reply.keys)), error)

            def job_known(job: Any, error: RpcError | None) -> None:
                if error is not None:
                    done(None, error)
                    return
                keys = gcs_pb2.KvKeysRequest(namespace=RUNS, prefix=job_id)
                gcs.KvKeys.start(keys, lambda reply, error: keys_known(job, reply, error))

            gcs.GetJob.start(gcs_pb2.GetJobRequest(job_id=job_id), job_known)

        def ask_caller(done: OnDone) -> None:
            asked = core_worker_pb2.GetJobSetupRequest(job_id=job_id)
            self._peers.stub_for(caller).GetJobSetup.start(asked, done)

        known = self._first(ask_gcs, ask_caller, f"job {job_id.hex()}")
        return JobSetup(known.namespace, known.config_json, list(known.run_keys))

    def _first(
        self, ask_gcs: Callable[[OnDone], None], ask_caller: Callable[[OnDone], None], what: str
    ) -> Any:
        """The first answer with `found`; where neither has it, the GCS's. Raises RpcError."""
        reactor, lock = self._env.reactor, self._env.lock
        # The GCS may not have got yet what its caller has exported.
        gcs_waiter, waiter = Waiter(reactor), Waiter(reactor)
        by_gcs: list[tuple[Any, RpcError | None]] = []
        by_caller: list[Any] = []

        def answered_by_gcs(reply: Any, error: RpcError | None) -> None:
            by_gcs.append((reply, error))
            gcs_waiter.set()
            if is_found(by_gcs) or by_caller:
                waiter.set()

        def answered_by_caller(reply: Any, error: RpcError | None) -> None:
            by_caller.append(reply if error is None and reply.found else None)
            if by_caller[0] is not None or by_gcs:
                waiter.set()

        ask_gcs(answered_by_gcs)
        reactor.wait(gcs_waiter, PATIENCE_S)
        if not is_found(by_gcs) and not is_refused(by_gcs):
            with lock:
                ask_caller(answered_by_caller)
            reactor.wait(waiter, self._env.config.gcs_timeout_s)
        if by_caller and by_caller[0] is not None and not is_found(by_gcs):
            return by_caller[0]
        if not by_gcs:
            message = f"neither the GCS nor the task's caller told {what} in time"
            raise RpcError(StatusCode.DEADLINE_EXCEEDED, message)
        return take_answer(by_gcs)


def is_found(answers: list[tuple[Any, RpcError | None]]) -> bool:
    return any(error is None and reply.found for reply, error in answers)


def is_refused(answers: list[tuple[Any, RpcError | None]]) -> bool:
    """By a GCS that is there, and that knows the job: one on an empty store may not have heard of it yet."""
    return any(error is not None and error.code not in (UNAVAILABLE, NOT_FOUND) for _, error in answers)
