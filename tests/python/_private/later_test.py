"""Parts that are not there yet: programs that import their names begin, and are told where they use them."""

from __future__ import annotations

import importlib.util

import pytest

import ray_mono as ray
from ray_mono.util import state


def test_the_state_api_and_the_client_refuse() -> None:
    for name in state.__all__:
        with pytest.raises(NotImplementedError, match=f"state.{name}: the state API is not"):
            getattr(state, name)()
    for function in (ray.client, ray.ClientBuilder, ray.util.connect, ray.util.disconnect):
        with pytest.raises(NotImplementedError, match="Ray Client is not part of ray_mono yet"):
            function("host:10001")
    with pytest.raises(NotImplementedError, match="Java workers are not"):
        ray.java_function("class", "method")


def test_libraries_say_that_they_are_not_there() -> None:
    with pytest.raises(ImportError, match="ray.tune is not part of ray_mono yet"):
        from ray_mono import tune  # type: ignore[attr-defined]  # noqa: F401
    with pytest.raises(AttributeError, match="ray.data is not part of ray_mono yet"):
        ray.data  # type: ignore[attr-defined]  # noqa: B018
    # Libraries look so whether there is one.
    assert not hasattr(ray, "tune") and importlib.util.find_spec("ray_mono.tune") is None
