"""Runtime environments as values: what may stand in each field, which fields go together, and what is read of
them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ray_mono._private.runtime_env import runtime_env
from ray_mono.runtime_env import RuntimeEnv, RuntimeEnvConfig


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"nothing": 1}, ValueError, "no field 'nothing'; its fields are: .*env_vars"),
        ({"env_vars": 3}, TypeError, r"\['env_vars'\] must be a dict from strings to strings, got 3"),
        ({"env_vars": {"A": 1}}, TypeError, "must map strings to strings, got 'A': 1"),
        ({"working_dir": 3}, TypeError, r"\['working_dir'\] must be a string, got 3 of type int"),
        ({"working_dir": "/nothing/there"}, ValueError, "'/nothing/there', which does not exist"),
        ({"working_dir": "https://host/page"}, ValueError, r"\.zip.*got 'https://host/page'"),
        ({"py_modules": "x"}, TypeError, "must be a list"),
        ({"pip": 3}, TypeError, "must be a list of strings, got 3"),
        ({"pip": {"pip_check": True}}, ValueError, "must have 'packages'"),
        ({"pip": {"packages": [], "more": 1}}, ValueError, "has no more"),
        ({"pip": "/nothing/there"}, ValueError, "the path of a requirements file"),
        ({"pip": ["a"], "conda": "b"}, ValueError, "one of the fields pip, uv and conda, got pip and conda"),
        ({"image_uri": "a", "uv": ["b"]}, ValueError, "does not go together with uv"),
        ({"config": 3}, TypeError, "must be a dict or a RuntimeEnvConfig"),
        ({"config": {"setup_timeout_seconds": 0}}, ValueError, "above 0, or -1"),
        ({"config": {"eager_install": "yes"}}, TypeError, "eager_install must be True or False"),
        ({"worker_process_setup_hook": 3}, TypeError, "a function, or 'module.function'"),
    ],
)
def test_what_cannot_stand_in_a_field_is_named(
    fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        RuntimeEnv(**fields)
    with pytest.raises(error, match=message):
        runtime_env.check(fields)


def test_a_field_that_does_not_work_yet_is_refused_where_the_environment_is_used() -> None:
    for env in (RuntimeEnv(pip=["a"]), {"working_dir": "/tmp"}, {"nsight": "default"}):
        with pytest.raises(NotImplementedError, match=r"runtime_env\['(pip|working_dir|nsight)'\] is not"):
            runtime_env.check(env)
    runtime_env.check({"env_vars": {"A": "1"}, "config": RuntimeEnvConfig(), "pip": None, "working_dir": ""})


def test_packages_are_written_out(tmp_path: Path) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("# what is needed\na==1\n\nb\n")
    env = RuntimeEnv(pip=str(requirements))
    assert env.pip_config() == {"packages": ["a==1", "b"], "pip_check": False}
    assert env.has_pip() and not env.has_uv() and env.uv_config() == {} and env.virtualenv_name() is None
    same = RuntimeEnv(pip={"packages": ["a==1", "b"]})
    assert env == same and env.pip_uri() == same.pip_uri() and str(env.pip_uri()).startswith("pip://")
    assert RuntimeEnv(uv=["a"]).uv_config()["packages"] == ["a"]


def test_each_field_can_be_asked_for() -> None:
    empty = RuntimeEnv()
    assert empty.env_vars() == {} and empty.working_dir() == "" and empty.working_dir_uri() is None
    assert empty.py_modules() == empty.py_modules_uris() == empty.java_jars() == empty.plugins() == []
    assert (empty.conda_uri(), empty.nsight(), empty.image_uri(), empty.py_executable()) == (None,) * 4
    assert RuntimeEnv(conda="base").conda_env_name() == "base"
    conda = RuntimeEnv(conda={"dependencies": ["pip"]})
    assert conda.has_conda() and json.loads(conda.conda_config() or "") == {"dependencies": ["pip"]}
    container = RuntimeEnv(container={"image": "i", "run_options": ["r"]})
    assert container.has_py_container() and container.py_container_image() == "i"
    assert (container.py_container_run_options(), container.py_container_worker_path()) == (["r"], None)
    assert RuntimeEnv(nsight="default").nsight() == "default"
    with pytest.raises(ValueError, match="key must be one of _inject_current_ray"):
        empty.get_extension("more")


def test_the_config_has_defaults_and_travels_as_a_dict() -> None:
    defaults = {"setup_timeout_seconds": 600, "eager_install": True, "log_files": []}
    assert RuntimeEnvConfig() == RuntimeEnvConfig.default_config() == defaults
    parsed = RuntimeEnvConfig.parse_and_validate_runtime_env_config({"eager_install": False})
    assert parsed.to_dict() == {**defaults, "eager_install": False}
    env = RuntimeEnv(config={"setup_timeout_seconds": 3})
    assert RuntimeEnv.deserialize(env.serialize()).get("config", data_class=RuntimeEnvConfig) == {
        **defaults,
        "setup_timeout_seconds": 3,
    }
    with pytest.raises(ValueError, match="no field more"):
        RuntimeEnvConfig.parse_and_validate_runtime_env_config({"more": 1})
