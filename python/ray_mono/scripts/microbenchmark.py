"""`ray-mono microbenchmark`: how fast this installation is, line by line."""

from __future__ import annotations

import sys

import click

from ray_mono.microbenchmark import catalogue, command
from ray_mono.microbenchmark.supervisor import Side


def run_microbenchmark(
    only: str, quick: bool, duration_s: float, json_path: str | None, verbose: bool
) -> None:
    """Ends the process with 1 where a line failed."""
    try:
        groups = catalogue.select(catalogue.GROUPS, only, quick)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    sys.exit(command.run(Side("ray_mono", "ray_mono"), groups, duration_s, json_path, verbose))
