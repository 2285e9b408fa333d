"""A catalogue of workloads that measure no runtime, but fare as real ones may: well, badly, or not at all."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray_mono.microbenchmark.line import Bench, Group, Line

# Longer than any test.
FOREVER_S = 3600


@contextlib.contextmanager
def cluster(module: Any) -> Iterator[None]:
    yield


@contextlib.contextmanager
def no_cluster(module: Any) -> Iterator[None]:
    raise OSError("no room for a cluster")
    yield


@contextlib.contextmanager
def missing(module: Any) -> Iterator[None]:
    raise NotImplementedError("no such thing")
    yield


SHARED = Group("shared", cluster)
ALONE = Group("alone")
NO_CLUSTER = Group("no cluster", no_cluster)
MISSING = Group("missing", missing)
GROUPS = [SHARED, ALONE, NO_CLUSTER, MISSING]


@SHARED.workload(Line("first"))
@ALONE.workload(Line("first"))
def first(bench: Bench) -> None:
    bench.report("first", [float(os.getpid())])


@SHARED.workload(Line("half"), Line("other half"))
def half(bench: Bench) -> None:
    bench.report("half", [1.0])
    raise ValueError("lost\nthe other half")


@SHARED.workload(Line("hangs"), timeout_s=0.5)
def hangs(bench: Bench) -> None:
    """And so does what it has started, whose pid is left where the test finds it."""
    child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({FOREVER_S})"])
    Path(os.environ["TOY_PID_FILE"]).write_text(str(child.pid))
    time.sleep(FOREVER_S)


@SHARED.workload(Line("dies"))
def dies(bench: Bench) -> None:
    os._exit(7)


@SHARED.workload(Line("later"), needs="time travel")
def later(bench: Bench) -> None:
    bench.ray.travel()


@SHARED.workload(Line("last"))
@ALONE.workload(Line("last"))
def last(bench: Bench) -> None:
    bench.report("last", [float(os.getpid())])


@NO_CLUSTER.workload(Line("one"))
@MISSING.workload(Line("one"), needs="wings")
@NO_CLUSTER.workload(Line("two"))
@MISSING.workload(Line("two"), needs="wings")
def never(bench: Bench) -> None:
    raise AssertionError("there is no cluster to measure")
