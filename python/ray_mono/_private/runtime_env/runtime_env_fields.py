"""The fields of a runtime environment: what may stand in each, alone and together, and its full form.

This module does not know what a field means, nor whether it works yet (`runtime_env.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

EXTENSIONS = frozenset({"_ray_release", "_ray_commit", "_inject_current_ray"})
KNOWN = EXTENSIONS | frozenset(
    "env_vars working_dir py_modules py_executable pip uv conda container image_uri excludes config java_jars"
    " worker_process_setup_hook _nsight _rocprof_sys nsight rocprof_sys containers mpi uris".split()
)
ARCHIVES = (".zip", ".tar.gz", ".tgz", ".tar.xz")
PACKAGES = ("pip", "uv", "conda")
# Nothing but these may stand beside the field.
ALONE = {
    "container": frozenset({"config", "env_vars"}),
    "image_uri": frozenset({"config", "env_vars"}),
}
SETUP_TIMEOUT_S = 600
CONFIG_DEFAULTS = {"setup_timeout_seconds": SETUP_TIMEOUT_S, "eager_install": True, "log_files": []}


def normalise(name: str, value: Any) -> Any:
    """The value in its full form, with what it leaves out.

    Raises ValueError for a name that is no field, TypeError or ValueError for what cannot stand there.
    """
    if name not in KNOWN:
        raise ValueError(f"runtime_env has no field {name!r}; its fields are: {', '.join(sorted(KNOWN))}")
    return _CHECKS[name](name, value) if value is not None and name in _CHECKS else value


def check_together(env: Mapping[str, Any]) -> None:
    """Raises ValueError for fields that exclude each other."""
    given = {name for name, value in env.items() if value}
    several = [name for name in PACKAGES if name in given]
    if len(several) > 1:
        raise ValueError(
            f"runtime_env may have one of the fields pip, uv and conda, got {' and '.join(several)};"
            " packages of pip can stand in conda's"
            " 'dependencies'"
        )
    for name, beside in ALONE.items():
        others = given - beside - {name}
        if name in given and others:
            raise ValueError(f"runtime_env[{name!r}] does not go together with {', '.join(sorted(others))}")


def _refuse(name: str, accepts: str, value: Any) -> TypeError:
    return TypeError(f"runtime_env[{name!r}] must be {accepts}, got {value!r} of type {type(value).__name__}")


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _refuse(name, "a string", value)
    return value


def _texts(name: str, value: Any) -> list[str]:
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise _refuse(name, "a list of strings", value)
    return list(value)


def _text_or_dict(name: str, value: Any) -> Any:
    if not isinstance(value, str | Mapping):
        raise _refuse(name, "a string or a dict", value)
    return value


def _env_vars(name: str, value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise _refuse(name, "a dict from strings to strings", value)
    for key, each in value.items():
        if not isinstance(key, str) or not isinstance(each, str):
            raise TypeError(f"runtime_env[{name!r}] must map strings to strings, got {key!r}: {each!r}")
        if not key or "=" in key or "\0" in key + each:
            raise ValueError(
                f"runtime_env[{name!r}] must have names that are not empty and hold no '=', and no NUL"
                f" anywhere, got {key!r}: {each!r}"
            )
        try:
            (key + each).encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"runtime_env[{name!r}] must be text that can be encoded, got {key!r}: {each!r}: {error}"
            ) from None
    return dict(value)


def _directory_or_uri(name: str, value: Any) -> str:
    text = _text(name, value)
    if "://" in text:
        if not text.endswith(ARCHIVES):
            raise ValueError(f"runtime_env[{name!r}] takes URIs of {', '.join(ARCHIVES)} files, got {text!r}")
    elif text and not os.path.exists(text):
        raise ValueError(f"runtime_env[{name!r}] names {text!r}, which does not exist")
    return text


def _modules(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise _refuse(name, "a list of directories, URIs and modules", value)
    return [_directory_or_uri(name, each) if isinstance(each, str) else each for each in value]


def _packages(name: str, value: Any) -> dict[str, Any]:
    """A list, the path of a requirements file, or a dict with "packages"."""
    defaults: dict[str, Any] = {f"{name}_check": False}
    if name == "uv":
        defaults["uv_pip_install_options"] = ["--no-cache"]
    if isinstance(value, str):
        if not os.path.isfile(value):
            raise ValueError(f"runtime_env[{name!r}] must be the path of a requirements file, got {value!r}")
        with open(value) as file:
            lines = (line.strip() for line in file)
            value = [line for line in lines if line and not line.startswith("#")]
    if not isinstance(value, Mapping):
        return {"packages": _texts(name, value), **defaults}
    if "packages" not in value:
        raise ValueError(f"runtime_env[{name!r}] must have 'packages' where it is a dict, got {value!r}")
    allowed = {
        "packages",
        f"{name}_check",
        f"{name}_version",
        f"{name}_pip_install_options",
        "pip_install_options",
    }
    if unknown := sorted(value.keys() - allowed):
        raise ValueError(
            f"runtime_env[{name!r}] has no {', '.join(unknown)}; it has {', '.join(sorted(allowed))}"
        )
    return {**defaults, **value, "packages": _texts(name, value["packages"])}


def _container(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _refuse(name, "a dict with 'image', 'worker_path' and 'run_options'", value)
    return dict(value)


def config(name: str, value: Any) -> dict[str, Any]:
    """Of the field `config`: with the defaults of what is left out."""
    if not isinstance(value, Mapping):
        raise _refuse(name, "a dict or a RuntimeEnvConfig", value)
    if unknown := sorted(value.keys() - CONFIG_DEFAULTS.keys()):
        raise ValueError(
            f"a RuntimeEnvConfig has no field {', '.join(unknown)}; it has {', '.join(CONFIG_DEFAULTS)}"
        )
    found = {**CONFIG_DEFAULTS, **value}
    timeout_s, log_files = found["setup_timeout_seconds"], found["log_files"]
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int):
        raise TypeError(f"setup_timeout_seconds must be a whole number of seconds, got {timeout_s!r}")
    if timeout_s <= 0 and timeout_s != -1:
        raise ValueError(f"setup_timeout_seconds must be above 0, or -1 for no limit, got {timeout_s!r}")
    if not isinstance(found["eager_install"], bool):
        raise TypeError(f"eager_install must be True or False, got {found['eager_install']!r}")
    if not isinstance(log_files, list) or not all(isinstance(each, str) for each in log_files):
        raise TypeError(f"log_files must be a list of strings, got {log_files!r}")
    return found


def _hook(name: str, value: Any) -> Any:
    if not isinstance(value, str) and not callable(value):
        raise _refuse(name, "a function, or 'module.function'", value)
    return value


_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "_nsight": _text_or_dict,
    "_rocprof_sys": _text_or_dict,
    "nsight": _text_or_dict,
    "rocprof_sys": _text_or_dict,
    "conda": _text_or_dict,
    "config": config,
    "container": _container,
    "env_vars": _env_vars,
    "excludes": _texts,
    "image_uri": _text,
    "java_jars": _texts,
    "pip": _packages,
    "py_executable": _text,
    "py_modules": _modules,
    "uv": _packages,
    "worker_process_setup_hook": _hook,
    "working_dir": _directory_or_uri,
}
