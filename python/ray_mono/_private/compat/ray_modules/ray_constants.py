"""`ray._private.ray_constants`: those of Ray's settings that programs read."""

from __future__ import annotations

DEFAULT_DASHBOARD_PORT = 8265
DEFAULT_PORT = 6379
ID_SIZE = 28
LOGGER_FORMAT = "%(asctime)s\t%(levelname)s %(filename)s:%(lineno)s -- %(message)s"
LOGGER_LEVEL = "info"
MIN_RESOURCE_GRANULARITY = 0.0001
RAY_ADDRESS_ENVIRONMENT_VARIABLE = "RAY_ADDRESS"
REDIS_DEFAULT_PASSWORD = ""
REDIS_DEFAULT_USERNAME = ""
