"""The functions of the state API."""

from ray_mono.util.state import *  # noqa: F403
