"""The monitor of a node's memory is set by the environment of whoever starts the node, also under Ray's
names. Who starts it hears what cannot be."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import ray_mono
from tests.integration.scripts import Script

PROGRAM = """
    import time

    {ray}

    ray.init(address="local", num_cpus=1)

    @ray.remote(max_retries=3)
    def endless():
        while True:
            time.sleep(0.01)

    try:
        ray.get(endless.remote(), timeout=60)
    except ray.exceptions.OutOfMemoryError as error:
        print("the error:", str(error).splitlines()[0])
    ray.shutdown()
"""
OURS = "import ray_mono as ray"
RAYS = "import ray_mono.compat\n    ray_mono.compat.install()\n    import ray"


@pytest.mark.parametrize(("ray", "prefix"), [(OURS, "RAY_MONO_"), (OURS, "RAY_"), (RAYS, "RAY_")])
def test_a_threshold_in_the_environment_counts_and_the_driver_is_told(
    start: Callable[..., Script], monkeypatch: pytest.MonkeyPatch, ray: str, prefix: str
) -> None:
    # Of the memory of any machine more is used.
    monkeypatch.setenv(f"{prefix}memory_usage_threshold", "0.000001")
    output = start(PROGRAM.format(ray=ray)).check_ended_well()
    lines = output.splitlines()
    (error,) = [line for line in lines if line.startswith("the error:")]
    (warning,) = [line for line in lines if "runs short of memory" in line and line != error]
    for told in (error, warning):
        assert "which ran task endless and used" in told, output
    assert "RAY_MONO_memory_monitor_refresh_ms=0" in warning


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        ("RAY_memory_usage_threshold", "95", "must be a finite number, above 0 and at most 1; got 95"),
        ("RAY_gcs_rpc_server_reconnect_timeout_s", "1e400", "must be a finite number, above 0; got inf"),
        ("RAY_MONO_idle_worker_timeout_s", "soon", "must be a number, got 'soon'"),
    ],
)
def test_a_value_that_cannot_be_is_named_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, complaint: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises((ValueError, RuntimeError), match=f"{variable} {complaint}") as caught:
        ray_mono.init(address="local", num_cpus=1)
    assert "usage:" not in str(caught.value)
