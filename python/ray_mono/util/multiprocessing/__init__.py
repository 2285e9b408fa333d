"""The standard library's multiprocessing.Pool, on a cluster: `from ray_mono.util.multiprocessing import
Pool`."""

from multiprocessing import JoinableQueue, TimeoutError

from ray_mono.util.multiprocessing.pool import Pool

__all__ = ["JoinableQueue", "Pool", "TimeoutError"]
