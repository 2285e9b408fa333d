"""Runtime environments as values: `RuntimeEnv(env_vars={...})` is a dict of the fields that are set.

It can be used wherever a dict can. What may stand in a field is checked here. Which fields work is checked
where the environment is used (`_private/runtime_env/runtime_env.py`), by a NotImplementedError that names the
field.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ray_mono._private.runtime_env import runtime_env_fields

__all__ = ["RuntimeEnv", "RuntimeEnvConfig"]


class RuntimeEnvConfig(dict[str, Any]):
    """How an environment is made ready: a dict, for the field `config`."""

    known_fields = frozenset(runtime_env_fields.CONFIG_DEFAULTS)

    def __init__(
        self,
        setup_timeout_seconds: int = runtime_env_fields.SETUP_TIMEOUT_S,
        eager_install: bool = True,
        log_files: list[str] | None = None,
    ) -> None:
        """setup_timeout_seconds: -1 for no limit. eager_install: when the job starts, not with the first
        task. log_files: further files for the log of making it ready. Raises TypeError or ValueError.
        """
        given = {
            "setup_timeout_seconds": setup_timeout_seconds,
            "eager_install": eager_install,
            "log_files": [] if log_files is None else log_files,
        }
        super().__init__(runtime_env_fields.config("config", given))

    @staticmethod
    def parse_and_validate_runtime_env_config(config: Mapping[str, Any]) -> RuntimeEnvConfig:
        """Of a dict, where what is left out has its default. Raises TypeError or ValueError."""
        return RuntimeEnvConfig(**runtime_env_fields.config("config", config))

    @classmethod
    def default_config(cls) -> RuntimeEnvConfig:
        return cls()

    def to_dict(self) -> dict[str, Any]:
        return dict(self)


class RuntimeEnv(dict[str, Any]):
    """The fields that are not None, written out: `pip=["a"]` is `{"packages": ["a"], "pip_check": False}`.

    Raises ValueError for a name that is no field and for fields that exclude each other, and TypeError or
    ValueError for what cannot stand in a field.
    """

    known_fields = runtime_env_fields.KNOWN
    extensions_fields = runtime_env_fields.EXTENSIONS

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
        rocprof_sys: Any = None,
        config: Any = None,
        _validate: bool = True,
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
            "_nsight": nsight,
            "_rocprof_sys": rocprof_sys,
            "config": config,
            "image_uri": image_uri,
            "uv": uv,
            **kwargs,
        }
        super().__init__()
        set_field = self.__setitem__ if _validate else super().__setitem__
        for name, value in fields.items():
            if value is not None:
                set_field(name, value)
        if _validate:
            runtime_env_fields.check_together(self)

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, runtime_env_fields.normalise(name, value))

    def set(self, name: str, value: Any) -> None:
        """As `env[name] = value`. Raises as the constructor does."""
        self[name] = value

    def get(self, name: str, default: Any = None, data_class: type | None = None) -> Any:
        """data_class: made of the field's own fields, where it is set and no such instance already."""
        value = super().get(name, default)
        if data_class is None or value is None or isinstance(value, data_class):
            return value
        return data_class(**value)

    def to_dict(self) -> dict[str, Any]:
        return dict(self)

    def serialize(self) -> str:
        """JSON with sorted keys: equal environments are equal strings."""
        return json.dumps(self, sort_keys=True)

    @classmethod
    def deserialize(cls, serialized_runtime_env: str) -> RuntimeEnv:
        """Of what serialize gave."""
        return cls(_validate=False, **json.loads(serialized_runtime_env))

    # ---- one field each; what is not set is empty, or None

    def env_vars(self) -> dict[str, str]:
        return dict(self.get("env_vars") or {})

    def has_working_dir(self) -> bool:
        return self.get("working_dir") is not None

    def working_dir(self) -> str:
        """ "" where there is none."""
        return str(self.get("working_dir") or "")

    def working_dir_uri(self) -> str | None:
        return self.get("working_dir")

    def py_modules(self) -> list[Any]:
        return list(self.get("py_modules") or [])

    def py_modules_uris(self) -> list[Any]:
        return self.py_modules()

    def py_executable(self) -> str | None:
        return self.get("py_executable")

    def java_jars(self) -> list[str]:
        return list(self.get("java_jars") or [])

    def nsight(self) -> Any:
        return self.get("_nsight")

    def rocprof_sys(self) -> Any:
        return self.get("_rocprof_sys")

    def has_conda(self) -> bool:
        return bool(self.get("conda"))

    def conda_env_name(self) -> str | None:
        """Of an environment that is there already."""
        conda = self.get("conda")
        return conda if isinstance(conda, str) else None

    def conda_config(self) -> str | None:
        """JSON of the environment to be made."""
        conda = self.get("conda")
        return json.dumps(conda, sort_keys=True) if isinstance(conda, Mapping) else None

    def conda_uri(self) -> str | None:
        return self._uri("conda")

    def has_pip(self) -> bool:
        return bool(self.get("pip"))

    def pip_config(self) -> dict[str, Any]:
        return dict(self.get("pip") or {})

    def pip_uri(self) -> str | None:
        return self._uri("pip")

    def virtualenv_name(self) -> str | None:
        """None: an environment of packages is described by them."""
        pip = self.get("pip")
        return pip if isinstance(pip, str) else None

    def has_uv(self) -> bool:
        return bool(self.get("uv"))

    def uv_config(self) -> dict[str, Any]:
        return dict(self.get("uv") or {})

    def uv_uri(self) -> str | None:
        return self._uri("uv")

    def has_py_container(self) -> bool:
        return bool(self.get("container"))

    def py_container_image(self) -> str | None:
        return self._of_container("image")

    def py_container_worker_path(self) -> str | None:
        return self._of_container("worker_path")

    def py_container_run_options(self) -> list[str] | None:
        return self._of_container("run_options")

    def image_uri(self) -> str | None:
        return self.get("image_uri")

    def plugins(self) -> list[tuple[str, Any]]:
        """Fields that a plugin brought: none, since there are no plugins yet."""
        return [(name, value) for name, value in self.items() if name not in self.known_fields]

    def plugin_uris(self) -> list[str]:
        return [
            str(uri)
            for _, value in self.plugins()
            if isinstance(value, Mapping)
            for uri in value.get("uris", [])
        ]

    def get_extension(self, key: str) -> Any:
        """One of extensions_fields. Raises ValueError for another name."""
        if key not in self.extensions_fields:
            raise ValueError(f"key must be one of {', '.join(sorted(self.extensions_fields))}, got {key!r}")
        return self.get(key)

    def _of_container(self, name: str) -> Any:
        return (self.get("container") or {}).get(name)

    def _uri(self, name: str) -> str | None:
        """Of what the field describes: the same for the same packages."""
        if not self.get(name):
            return None
        content = json.dumps(self[name], sort_keys=True).encode()
        return f"{name}://{hashlib.sha1(content).hexdigest()}"
