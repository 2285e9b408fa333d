"""Runtime environments as options give them: their fields, which of these work, and their form on the wire.

Jobs, tasks and actors can be given environment variables. What would have to be installed or fetched first is
refused, not ignored: a program that needs a package would otherwise fail later and elsewhere.

A worker serves one environment as long as it lives. What it submits inherits that (`inherited`). A task's or
an actor's own environment is laid over it field by field, and its variables one by one. The job's environment
is not part of this: every worker of the job has it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ray_mono._private.runtime_env import runtime_env_fields
from ray_mono.core_worker.process import current

KNOWN = runtime_env_fields.KNOWN
# `config` is about installing, of which there is none: every bound that it sets is kept.
SUPPORTED = frozenset({"env_vars", "config"})


def check(env: Mapping[str, Any]) -> None:
    """Raises TypeError, ValueError or NotImplementedError that names the field."""
    if not isinstance(env, Mapping):
        raise TypeError(f"runtime_env must be a dict, got {env!r}")
    for name, value in env.items():
        runtime_env_fields.normalise(name, value)
    runtime_env_fields.check_together(env)
    for name, value in env.items():
        if value and name not in SUPPORTED:
            raise NotImplementedError(f"runtime_env[{name!r}] is not part of ray_mono yet")


def serialize(env: Mapping[str, Any] | None) -> str:
    """JSON with sorted keys, so that equal environments are equal strings; "" for none."""
    fields = {name: value for name, value in (env or {}).items() if value}
    return json.dumps(fields, sort_keys=True) if fields else ""


def inherited(env: Mapping[str, Any] | None) -> str:
    """The environment, serialized, of a task or actor that this process submits with `env`."""
    core = current.core
    own = core.task_runtime_env if core is not None else ""
    if not own:
        return serialize(env)
    if not env:
        return own
    parents = json.loads(own)
    variables = {**parents.get("env_vars", {}), **(env.get("env_vars") or {})}
    return serialize({**parents, **env, "env_vars": variables})
