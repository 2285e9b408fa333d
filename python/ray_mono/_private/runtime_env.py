"""Runtime environments as options give them: which fields there are, which of them work, and their form on
the wire.

So far a whole job can be given environment variables, and tasks and actors nothing of their own. The rest is
refused, not ignored: a program that needs a package would otherwise fail later and elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

OF_JOBS = frozenset({"env_vars"})
OF_TASKS: frozenset[str] = frozenset()
# Ray's fields.
KNOWN = frozenset(
    "env_vars working_dir py_modules py_executable pip uv conda container image_uri excludes config plugins uris containers"
    " java_jars worker_process_setup_hook nsight mpi _ray_release _ray_commit _inject_current_ray".split()
)


def check(env: Mapping[str, Any], supported: frozenset[str]) -> None:
    """Raises TypeError, ValueError or NotImplementedError that names the field. supported: OF_JOBS or
    OF_TASKS.
    """
    if not isinstance(env, Mapping):
        raise TypeError(f"runtime_env must be a dict, got {env!r}")
    for name, value in env.items():
        if name not in KNOWN:
            raise ValueError(f"runtime_env has no field {name!r}; its fields are: {', '.join(sorted(KNOWN))}")
        if value and name not in supported:
            where = (
                "for tasks and actors (for a job it is: init(runtime_env=...)) " if name in OF_JOBS else ""
            )
            raise NotImplementedError(f"runtime_env[{name!r}] {where}is not part of ray_mono yet")
    env_vars = env.get("env_vars") or {}
    if not isinstance(env_vars, Mapping):
        raise TypeError(f"runtime_env['env_vars'] must be a dict from strings to strings, got {env_vars!r}")
    for key, value in env_vars.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"runtime_env['env_vars'] must map strings to strings, got {key!r}: {value!r}")


def serialize(env: Mapping[str, Any] | None) -> str:
    """JSON with sorted keys, so that equal environments are equal strings; "" for none."""
    fields = {name: value for name, value in (env or {}).items() if value}
    return json.dumps(fields, sort_keys=True) if fields else ""
