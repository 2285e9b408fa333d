"""`init` refuses, before anything is started, what cannot be; each refusal names the argument and what is
accepted.
"""

from __future__ import annotations

import logging
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ray_mono as ray
from ray_mono._private.driver import connection, init_arguments


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"foo": 1}, RuntimeError, "no argument foo"),
        ({"num_cpus": "a"}, TypeError, "num_cpus must be a whole number of at least 0, got 'a'"),
        ({"num_cpus": -1}, ValueError, "num_cpus must be a whole number of at least 0, got -1"),
        ({"num_gpus": 0.5}, ValueError, "num_gpus must be a whole number of at least 0, got 0.5"),
        ({"resources": {"A": 1.5}}, ValueError, r"resources\['A'\] must be a whole number"),
        ({"resources": {"CPU": 1}}, ValueError, "use num_cpus instead"),
        ({"num_gpus": True}, TypeError, "num_gpus"),
        ({"resources": "x"}, TypeError, "resources must be a dict"),
        ({"resources": {1: 1}}, TypeError, "resources must have names that are strings, got 1"),
        ({"resources": {"A": -1}}, ValueError, r"resources\['A'\]"),
        ({"namespace": ""}, ValueError, "namespace must not be empty"),
        ({"namespace": 3}, TypeError, "namespace must be a string"),
        ({"namespace": "caf\udce9"}, ValueError, "namespace must be valid Unicode, got 'caf.udce9'"),
        ({"resources": {"caf\udce9": 1}}, ValueError, "resources must have names of valid Unicode"),
        ({"address": 3}, TypeError, "address must be a string"),
        ({"_node_ip_address": 3}, TypeError, "_node_ip_address must be a string or None, got 3"),
        ({"_redis_password": 3}, TypeError, "_redis_password must be a string"),
        ({"_temp_dir": b"/t"}, TypeError, "_temp_dir must be a string"),
        ({"_temp_dir": "/caf\udce9"}, ValueError, "_temp_dir must be valid Unicode, got '/caf.udce9'"),
        ({"address": ""}, ValueError, "address must be"),
        ({"address": "ray://host:10001"}, NotImplementedError, "client server"),
        ({"include_dashboard": True}, NotImplementedError, "dashboard"),
        ({"dashboard_host": "0.0.0.0"}, NotImplementedError, r"dashboard_host='0.0.0.0'\): the dashboard"),
        ({"cgroup_path": "/x"}, NotImplementedError, "resource isolation"),
        ({"_node_name": "n"}, NotImplementedError, "_node_name='n'"),
        ({"runtime_env": {"pip": ["x"]}}, NotImplementedError, "pip"),
        ({"runtime_env": {"env_vars": {"A": 1}}}, TypeError, "strings to strings"),
        ({"labels": {"zone": 3}}, TypeError, "labels must be a dict from strings to strings, got"),
        ({"job_config": 3}, TypeError, "job_config must be a JobConfig or a dict, got 3"),
        ({"logging_config": 3}, TypeError, "logging_config must be a LoggingConfig, got 3"),
        ({"logging_format": 3}, TypeError, "logging_format must be .* got 3"),
        ({"logging_level": "loud"}, ValueError, "logging_level must be one of debug"),
        ({"job_config": {"default_actor_lifetime": "x"}}, ValueError, "default_actor_lifetime"),
    ],
)
def test_a_wrong_argument_is_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ray.init(**{"local_mode": True, **arguments})
    assert not ray.is_initialized()


def test_arguments_of_parts_that_are_not_here_may_ask_for_nothing() -> None:
    nothing = {"enable_resource_isolation": False, "cgroup_path": None, "proxy_server_url": None}
    init_arguments.refuse_what_is_not_here(False, "127.0.0.1", None, nothing)


def test_a_cluster_that_runs_is_not_given_resources() -> None:
    arguments = make(num_cpus=3)
    with pytest.raises(ValueError, match="num_cpus=3 was given, but this joins a cluster"):
        arguments.check_joining()
    make().check_joining()


def make(**given: Any) -> connection.InitArguments:
    node = dict.fromkeys(["address", "num_cpus", "num_gpus", "resources", "labels", "object_store_memory"])
    rest: dict[str, Any] = dict.fromkeys(["log_to_driver", "namespace", "runtime_env", "job_config"])
    return init_arguments.make(**{**node, **rest, "logging_level": "info", "private": {}, **given})


def test_a_driver_without_a_namespace_has_one_of_its_own() -> None:
    assert make().namespace != make().namespace
    assert make(namespace="n").namespace == "n"
    assert make(job_config={"ray_namespace": "j"}).namespace == "j"


@pytest.mark.parametrize(
    ("given", "name"), [("INFO", "info"), (logging.WARNING, "warning"), ("critical", "error"), (10, "debug")]
)
def test_logging_levels_are_taken_as_logging_has_them(given: Any, name: str) -> None:
    assert init_arguments.level_name(given) == name


def test_workers_search_the_scripts_directory_and_the_current_one(tmp_path: Path) -> None:
    script = tmp_path / "scripts" / "program.py"
    script.parent.mkdir()
    script.write_text(
        "from ray_mono._private.driver.connection import driver_sys_path\nprint(driver_sys_path())"
    )
    where = tmp_path / "elsewhere"
    where.mkdir()

    def printed(*command: str) -> str:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, *command], cwd=where, env=environment, capture_output=True, text=True, timeout=60
        )
        assert not done.stderr
        return done.stdout.strip()

    # The current directory comes first only where it does on the driver.
    assert printed(str(script)) == str(([str(script.parent)], [str(where)]))
    assert printed("-c", script.read_text()) == str(([str(where)], []))
    assert printed("-P", str(script)) == "([], [])"


def test_the_limit_of_open_files_is_raised() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        connection.raise_open_files_limit()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert soft > 256 and hard == before[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(("limit", "is_told"), [(256, True), (4096, False), (resource.RLIM_INFINITY, False)])
def test_a_limit_of_few_open_files_is_told(
    limit: int, is_told: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, limit))
    connection.raise_open_files_limit()
    assert [f"Only {limit} files" in message for message in caplog.messages] == [True] * is_told


def test_what_has_no_effect_is_told_and_the_hook_can_be_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(init_arguments.RUNTIME_ENV_HOOK_VARIABLE, "nowhere.hook")
    init_arguments.refuse_what_is_not_here(False, "127.0.0.1", None, {"_driver_object_store_memory": 1})
    make(private={"_driver_object_store_memory": 1, "_skip_env_hook": True})
    assert "_driver_object_store_memory" in caplog.text and "no effect" in caplog.text
    with pytest.raises(ValueError, match="nowhere.hook"):
        make(private={"_skip_env_hook": False})


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"gcs": {}, "task_retry_delay_ms": 1}, ValueError, "no setting 'task_retry_delay_ms'"),
        ({"gcs": 1}, TypeError, r"_system_config\['gcs'\] must be a dict"),
        ({"nobody": {}}, ValueError, "no setting 'nobody'; accepted are gcs, object_manager, raylet"),
        ([1], TypeError, "_system_config must be a dict"),
    ],
)
def test_settings_that_nobody_reads_are_refused(config: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(private={"_system_config": config})


def test_a_flag_that_is_no_boolean_is_refused() -> None:
    with pytest.raises(TypeError, match="log_to_driver must be True or False, got 'no' of type str"):
        make(log_to_driver="no")


@pytest.mark.parametrize(
    ("argv", "told"), [(["prog.py", Path("data"), 3], "prog.py data 3"), ([], ""), (None, "")]
)
def test_whatever_a_program_has_made_of_its_command_line_it_may_join(
    argv: Any, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    assert connection.command_line() == told
    monkeypatch.delattr(sys, "argv")
    assert connection.command_line() == ""
