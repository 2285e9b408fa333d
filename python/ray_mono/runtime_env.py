"""Runtime environments as values: `RuntimeEnv(env_vars={...})` is a dict of the fields that are set, and can be used wherever a dict can.

Which fields work is checked where the environment is used (`_private/runtime_env.py`), by a NotImplementedError that names the field.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ray_mono._private import runtime_env as runtime_envs

__all__ = ["RuntimeEnv"]


class RuntimeEnv(dict[str, Any]):
    """The fields that are not None. Raises ValueError for a name that is no field."""

    known_fields = runtime_envs.KNOWN

    def __init__(
        self,
        *,
        py_modules: list[Any] | None = None,
        py_executable: str | None = None,
        working_dir: str | None = None,
        pip: Any = None,
        conda: Any = None,
        container: Mapping[str, Any] | None = None,
        env_vars: Mapping[str, str] | None = None,
        worker_process_setup_hook: Any = None,
        nsight: Any = None,
        config: Any = None,
        image_uri: str | None = None,
        uv: Any = None,
        **kwargs: Any,
    ) -> None:
        fields = {
            "py_modules": py_modules,
            "py_executable": py_executable,
            "working_dir": working_dir,
            "pip": pip,
            "conda": conda,
            "container": container,
            "env_vars": env_vars,
            "worker_process_setup_hook": worker_process_setup_hook,
            "nsight": nsight,
            "config": config,
            "image_uri": image_uri,
            "uv": uv,
            **kwargs,
        }
        super().__init__()
        for name, value in fields.items():
            if value is not None:
                self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if name not in self.known_fields:
            raise ValueError(
                f"a RuntimeEnv has no field {name!r}; its fields are {', '.join(sorted(self.known_fields))}"
            )
        super().__setitem__(name, value)

    def set(self, name: str, value: Any) -> None:
        """As `env[name] = value`. Raises ValueError for a name that is no field."""
        self[name] = value

    def env_vars(self) -> dict[str, str]:
        return dict(self.get("env_vars") or {})

    def working_dir(self) -> str:
        """ "" where there is none."""
        return str(self.get("working_dir") or "")

    def to_dict(self) -> dict[str, Any]:
        return dict(self)

    def serialize(self) -> str:
        """JSON with sorted keys: equal environments are equal strings."""
        return json.dumps(self, sort_keys=True)

    @classmethod
    def deserialize(cls, serialized_runtime_env: str) -> RuntimeEnv:
        """Of what serialize gave."""
        return cls(**json.loads(serialized_runtime_env))
