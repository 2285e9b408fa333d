"""What a driver says once for its whole job: how log lines look, and how long its actors live."""

from __future__ import annotations

import json
from collections.abc import Callable

from tests.integration.scripts import Script


def test_log_lines_of_workers_are_as_the_logging_config_says(start: Callable[..., Script]) -> None:
    source = """
        import logging
        import ray_mono as ray

        @ray.remote
        def logs():
            logging.getLogger("mine").info("from the task")

        @ray.remote
        class Logs:
            def method(self):
                logging.getLogger("mine").info("from the actor")

        ray.init(num_cpus=1, logging_config=ray.LoggingConfig(encoding="JSON", log_level="INFO"))
        logging.getLogger("mine").info("from the driver")
        ray.get([logs.remote(), Logs.options(name="scribe", num_cpus=0).remote().method.remote()])
        import sys
        sys.stdin.readline()
        ray.shutdown()
    """
    script = start(source)
    told = {}
    # Lines that say themselves who wrote them have nothing in front.
    while len(told) < 3:
        line = script.wait_for_line("from the")
        told[json.loads(line)["message"]] = json.loads(line)
    script.say("end")
    script.check_ended_well()
    assert told["from the task"]["task_name"] == "logs" and "task_name" not in told["from the driver"]
    assert told["from the actor"]["actor_name"] == "scribe" and "actor_name" not in told["from the task"]
    assert told["from the task"]["job_id"] == told["from the driver"]["job_id"]


def test_actors_are_detached_where_the_job_says_so(start: Callable[..., Script]) -> None:
    source = """
        import gc
        import ray_mono as ray
        from ray_mono.job_config import JobConfig

        @ray.remote
        class A:
            def here(self):
                return "here"

            def makes(self):
                A.options(name="inner").remote()

        ray.init(num_cpus=2, job_config=JobConfig(default_actor_lifetime="detached", ray_namespace="n"))
        A.options(name="outer").remote()
        gc.collect()
        outer = ray.get_actor("outer")
        ray.get(outer.makes.remote())
        print(ray.get([outer.here.remote(), ray.get_actor("inner").here.remote()]))
        ray.shutdown()
    """
    assert "['here', 'here']" in start(source).check_ended_well()
