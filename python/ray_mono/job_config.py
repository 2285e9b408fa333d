"""Settings of one job: of a driver and of everything that runs for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray_mono._private.logs.logging_config import LoggingConfig


class JobConfig:
    """Given to `init(job_config=...)`. `init`'s own arguments win.

    Attributes:
        code_search_path: a list of directories, which come first on every worker's sys.path.
        runtime_env: a dict, or None: the environment of the job's workers.
        metadata: a dict of strings about the job, for people and tools.
        ray_namespace: where its named actors live; None for one of its own.
        default_actor_lifetime: "detached" or "non_detached".
        py_logging_config: as `init(logging_config=...)`; None for none.
    """

    def __init__(
        self,
        jvm_options: Sequence[str] | None = None,
        code_search_path: Sequence[str] | None = None,
        runtime_env: Mapping[str, Any] | None = None,
        _client_job: bool = False,
        metadata: Mapping[str, str] | None = None,
        ray_namespace: str | None = None,
        default_actor_lifetime: str = "non_detached",
        _disable_job_level_lineage_reconstruction: bool = False,
        _py_driver_sys_path: Sequence[str] | None = None,
    ) -> None:
        """jvm_options: there are no Java workers, so anything but none is refused. _py_driver_sys_path:
        further directories for workers.

        Raises TypeError or ValueError naming what is wrong, and NotImplementedError for what is not part of
        ray_mono yet.
        """
        for name, value in (
            ("jvm_options", jvm_options),
            ("_client_job", _client_job),
            ("_disable_job_level_lineage_reconstruction", _disable_job_level_lineage_reconstruction),
        ):
            if value:
                raise NotImplementedError(f"JobConfig({name}={value!r}) is not part of ray_mono yet")
        self.jvm_options: list[str] = []
        self.code_search_path = [
            *_directories("code_search_path", code_search_path),
            *_directories("_py_driver_sys_path", _py_driver_sys_path),
        ]
        self.metadata = dict(metadata or {})
        self.py_logging_config: LoggingConfig | None = None
        self.ray_namespace = ray_namespace
        self.set_runtime_env(runtime_env)
        self.set_default_actor_lifetime(default_actor_lifetime)

    def set_metadata(self, key: str, value: str) -> None:
        """Adds one text about the job."""
        self.metadata[key] = value

    def set_runtime_env(self, runtime_env: Mapping[str, Any] | None, validate: bool = False) -> None:
        """Sets the runtime environment. validate: check it now, and not only in `init`. Raises TypeError,
        ValueError or NotImplementedError naming the field then."""
        from ray_mono._private.runtime_env import runtime_env as runtime_envs

        if validate and runtime_env is not None:
            runtime_envs.check(runtime_env)
        self.runtime_env = runtime_env

    def set_py_logging_config(self, logging_config: LoggingConfig | None = None) -> None:
        self.py_logging_config = logging_config

    def ensure_logging_config(self, logging_config: Mapping[str, Any] | LoggingConfig | None = None) -> None:
        """Sets the logging configuration if there is none yet. Raises TypeError for another type."""
        if logging_config is None or self.py_logging_config is not None:
            return
        if isinstance(logging_config, Mapping):
            logging_config = LoggingConfig.from_dict(logging_config)
        if not isinstance(logging_config, LoggingConfig):
            raise TypeError(f"logging_config must be a dict or a LoggingConfig, got {logging_config!r}")
        self.py_logging_config = logging_config

    def set_ray_namespace(self, ray_namespace: str) -> None:
        self.ray_namespace = ray_namespace

    def set_default_actor_lifetime(self, default_actor_lifetime: str) -> None:
        """Sets the lifetime of actors that name none. Raises ValueError for anything but "detached" or
        "non_detached"."""
        if default_actor_lifetime not in ("detached", "non_detached"):
            raise ValueError(
                f"default_actor_lifetime must be 'detached' or 'non_detached', got {default_actor_lifetime!r}"
            )
        self.default_actor_lifetime = default_actor_lifetime

    @classmethod
    def from_json(cls, job_config_json: Mapping[str, Any]) -> JobConfig:
        """Made of a dict of the constructor's arguments. The private ones have no underscore there."""
        private = ("client_job", "disable_job_level_lineage_reconstruction", "py_driver_sys_path")
        return cls(
            **{f"_{name}" if name in private else name: value for name, value in job_config_json.items()}
        )


def _directories(name: str, given: Sequence[str] | None) -> list[str]:
    if given is None:
        return []
    if not isinstance(given, list | tuple) or not all(isinstance(each, str) for each in given):
        raise TypeError(f"{name} must be a list of directories, got {given!r}")
    return list(given)
