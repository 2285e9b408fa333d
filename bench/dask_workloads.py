"""The workloads that Dask's `distributed` can do too, under the names of the lines that they answer to."""

from __future__ import annotations

from ray_mono._private.microbenchmark.line import Group

GROUPS: list[Group] = []
