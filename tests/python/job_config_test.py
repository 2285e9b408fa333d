"""JobConfig, LoggingConfig and RuntimeEnv as values."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

import pytest

import ray_mono as ray
from ray_mono._private.driver import init_arguments
from ray_mono._private.logs import logging_config
from ray_mono._private.runtime_env import runtime_env
from ray_mono.job_config import JobConfig
from ray_mono.runtime_env import RuntimeEnv


def test_a_job_config_is_filled_step_by_step() -> None:
    config = JobConfig(code_search_path=["a"], _py_driver_sys_path=["b"])
    config.set_metadata("who", "me")
    config.set_ray_namespace("blue")
    config.set_default_actor_lifetime("detached")
    config.set_runtime_env({"env_vars": {"A": "1"}}, validate=True)
    config.ensure_logging_config({"encoding": "JSON"})
    config.ensure_logging_config({"encoding": "TEXT"})  # the first counts
    assert (config.code_search_path, config.metadata, config.ray_namespace) == (
        ["a", "b"],
        {"who": "me"},
        "blue",
    )
    assert config.default_actor_lifetime == "detached"
    assert config.py_logging_config is not None and config.py_logging_config.encoding == "JSON"


def test_a_job_config_is_made_of_json() -> None:
    config = JobConfig.from_json({"ray_namespace": "x", "py_driver_sys_path": ["p"], "client_job": False})
    assert (config.ray_namespace, config.code_search_path) == ("x", ["p"])


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: JobConfig(code_search_path="a"), TypeError, "code_search_path must be a list"),
        (lambda: JobConfig(default_actor_lifetime="long"), ValueError, "default_actor_lifetime must be"),
        (lambda: JobConfig(jvm_options=["-X"]), NotImplementedError, "jvm_options"),
        (
            lambda: JobConfig().set_runtime_env({"nothing": 1}, validate=True),
            ValueError,
            "no field 'nothing'",
        ),
        (
            lambda: JobConfig().ensure_logging_config(3),  # type: ignore[arg-type]
            TypeError,
            "logging_config must be",
        ),
        (lambda: ray.LoggingConfig(encoding="XML"), ValueError, "encoding must be 'TEXT' or 'JSON'"),
        (
            lambda: ray.LoggingConfig(additional_log_standard_attrs=["no"]),
            ValueError,
            "has 'no'; accepted are",
        ),
        (lambda: RuntimeEnv(nothing=1), ValueError, "no field 'nothing'"),
    ],
)
def test_wrong_values_are_named(make: Callable[[], object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        make()


def record(text: str = "hello") -> logging.LogRecord:
    made = logging.LogRecord("a.logger", logging.INFO, "/x/file.py", 7, text, None, None)
    made.task_name = "f"
    return made


def test_text_lines_end_in_what_is_known_about_their_origin() -> None:
    config = ray.LoggingConfig(additional_log_standard_attrs=["name"])
    line = logging_config._Formatter(config).format(record())
    assert line.endswith("INFO file.py:7 -- hello name=a.logger task_name=f")


def test_json_lines_are_objects() -> None:
    config = ray.LoggingConfig.from_dict({"encoding": "JSON", "unknown": 1})
    line = json.loads(logging_config._Formatter(config).format(record()))
    assert {name: line[name] for name in ("levelname", "message", "lineno", "task_name")} == {
        "levelname": "INFO",
        "message": "hello",
        "lineno": 7,
        "task_name": "f",
    }
    assert ray.LoggingConfig.from_dict(config.to_dict()) == config


def test_a_runtime_env_is_a_dict_of_what_is_set() -> None:
    env = RuntimeEnv(env_vars={"A": "1"}, working_dir=None)
    assert env == {"env_vars": {"A": "1"}} == RuntimeEnv.deserialize(env.serialize()).to_dict()
    env.set("env_vars", {"B": "2"})
    assert env.env_vars() == {"B": "2"}
    runtime_env.check(env)


def test_the_environment_fills_what_init_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_MONO_NAMESPACE", "blue")
    monkeypatch.setenv("RAY_MONO_LOG_TO_DRIVER", "0")
    given = {
        name: None
        for name in ("address", "num_cpus", "num_gpus", "resources", "labels", "object_store_memory")
    }

    def make(namespace: str | None, log_to_driver: bool | None) -> init_arguments.InitArguments:
        return init_arguments.make(
            logging_level="info",
            log_to_driver=log_to_driver,
            namespace=namespace,
            runtime_env=None,
            job_config=None,
            private={},
            **given,
        )

    assert (make(None, None).namespace, make(None, None).log_to_driver) == ("blue", False)
    assert (make("red", True).namespace, make("red", True).log_to_driver) == ("red", True)
    monkeypatch.setenv("RAY_MONO_RUNTIME_ENV_HOOK", "nothing_like_it.hook")
    with pytest.raises(ValueError, match="RAY_MONO_RUNTIME_ENV_HOOK must be module.function"):
        make(None, None)
