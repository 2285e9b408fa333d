"""joblib's batches on a Pool of the cluster.

joblib calls configure() at the start of every Parallel call, submit() for every batch, terminate() at the
end. The pool outlives a call, as joblib's own processes do, since processes that have imported scikit-learn
are worth keeping; it ends with the backend, which lives as long as the `with parallel_config(...)`. Large
arrays among the arguments are put into the object store once per Parallel call, and read there without a
copy.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from joblib._parallel_backends import (
    AutoBatchingMixin,
    FallbackToBackend,
    ParallelBackendBase,
    SequentialBackend,
)

from ray_mono._private.driver.auto_init import connected_core
from ray_mono._private.state import cluster_resources
from ray_mono._private.worker import get, put
from ray_mono.common.our_bug import known
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.util.multiprocessing.pool import Pool

# Smaller arguments travel in the call itself.
SHARED_BYTES_MIN = 100 << 10


class RayBackend(AutoBatchingMixin, ParallelBackendBase):
    """Runs batches in processes of a cluster; joblib makes it, by the name "ray"."""

    supports_retrieve_callback = True
    supports_sharedmem = False
    uses_threads = False

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        ray_remote_args: dict[str, Any] | None = None,
        **backend_kwargs: Any,
    ) -> None:
        """ray_remote_args: options of the actors that the processes are."""
        super().__init__(
            nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads, **backend_kwargs
        )
        self._ray_remote_args = ray_remote_args
        self._pool: Pool | None = None
        self._pool_key: Any = None
        """What the pool was made for: the session, the number of processes, and their options."""
        self._shared: dict[int, tuple[Any, _Shared]] = {}
        """By id(): arguments of this Parallel call that were put, which keeps the ids theirs."""

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """n_jobs, but no more than the cluster has CPUs; negative ones count from there, -1 being all.

        Raises ValueError for 0.
        """
        if n_jobs == 0:
            raise ValueError(
                "n_jobs must not be 0: give a positive number, or -1 for all CPUs of the cluster"
            )
        if n_jobs is None:
            return 1
        connected_core()
        num_cpus = max(1, int(cluster_resources().get("CPU", 0)))
        return min(n_jobs, num_cpus) if n_jobs > 0 else max(1, num_cpus + 1 + n_jobs)

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: str | None = None,
        require: str | None = None,
        ray_remote_args: dict[str, Any] | None = None,
        **options: Any,
    ) -> int:
        """Makes the pool, or keeps the one there is; returns the number of processes. joblib's other options
        are about processes of its own. Falls back to running in this process for a single job."""
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self.parallel = parallel
        remote_args = ray_remote_args or self._ray_remote_args
        key = (connected_core(), n_jobs, remote_args)
        if self._pool is None or key != self._pool_key:
            self._end_pool()
            self._pool, self._pool_key = Pool(n_jobs, ray_remote_args=remote_args), key
        return n_jobs

    def submit(self, func: Any, callback: Callable[[Any], Any] | None = None) -> Any:
        """Has a batch run; callback gets (value, error)."""
        pool = known(self._pool, "the pool of the batches")
        told = callback or (lambda outcome: None)
        return pool.apply_async(
            _Batch(func, self._share),
            callback=lambda value: told((value, None)),
            error_callback=lambda error: told((None, error)),
        )

    apply_async = submit  # joblib before 1.5

    def retrieve_result_callback(self, out: tuple[Any, BaseException | None]) -> Any:
        """The value that a callback was given; raises the error."""
        value, error = out
        if error is not None:
            raise error
        return value

    def stop_call(self) -> None:
        """The end of a Parallel call: its arguments are let go."""
        self._shared.clear()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Ends the processes; makes new ones if more is to come."""
        n_jobs = self._pool_key[1]
        self._end_pool()
        if ensure_ready:
            self.configure(n_jobs, self.parallel)

    def terminate(self) -> None:
        """The end of a Parallel call, or of a `with Parallel(...)`."""
        self._shared.clear()
        self.reset_batch_stats()

    def _end_pool(self) -> None:
        if self._pool is not None:
            self._pool.terminate()
        self._pool = None

    def _share(self, value: Any) -> Any:
        """A reference in the place of a large array."""
        if _size_bytes(value) < SHARED_BYTES_MIN:
            return value
        if id(value) not in self._shared:
            self._shared[id(value)] = (value, _Shared(put(value)))
        return self._shared[id(value)][1]

    def __reduce__(self) -> Any:
        # Travels where somebody's arguments mention it; its processes are this process's.
        return RayBackend, (self.nesting_level, None, self._ray_remote_args)


def _size_bytes(value: Any) -> int:
    size = getattr(value, "nbytes", None)  # arrays, series, Arrow tables
    if size is None and hasattr(value, "memory_usage"):  # data frames
        size = value.memory_usage().sum()
    return int(size) if isinstance(size, numbers.Integral) else 0


@dataclass(frozen=True)
class _Shared:
    """A large argument."""

    ref: ObjectRef[Any]


class _Batch:
    """joblib's BatchedCalls, with references in the place of large arguments while it travels."""

    def __init__(self, calls: Any, share: Callable[[Any], Any]) -> None:
        kind, (items, *others) = calls.__reduce__()
        self._make_calls, self._others = kind, others
        self._items = _mapped(items, share)

    def __call__(self) -> Any:
        return self._make_calls(_mapped(self._items, _read), *self._others)()


def _mapped(items: Any, change: Callable[[Any], Any]) -> list[Any]:
    return [
        (function, [change(each) for each in args], {name: change(each) for name, each in kwargs.items()})
        for function, args, kwargs in items
    ]


def _read(value: Any) -> Any:
    return get(value.ref) if isinstance(value, _Shared) else value
