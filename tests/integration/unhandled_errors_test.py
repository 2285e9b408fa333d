"""Errors that nobody asks for are printed once on the driver, others never."""

from __future__ import annotations

from collections.abc import Callable

from tests.integration.scripts import Script

PROGRAM = """
    import gc
    import sys
    import ray_mono as ray

    ray.init("local", num_cpus=2)

    @ray.remote
    def fail(text):
        raise ValueError(text)

    @ray.remote(num_returns=2)
    def fail_twice(text):
        raise ValueError(text)

    @ray.remote
    def take(value):
        return value

    @ray.remote
    class Broken:
        def __init__(self, text):
            raise ValueError(text)

        def call(self):
            pass

    def caught(reference):
        try:
            ray.get(reference, timeout=60)
        except Exception:
            return
        raise AssertionError("no error")
"""


def run(start: Callable[..., Script], body: str) -> str:
    import textwrap

    return start(textwrap.dedent(PROGRAM) + textwrap.dedent(body) + "\nray.shutdown()\n").check_ended_well()


def test_an_error_nobody_gets_is_printed_once_on_the_driver(start: Callable[..., Script]) -> None:
    """Dropped before it was there and after, with two returns, and by a task of a task."""
    output = run(
        start,
        """
        kept = fail_twice.remote("both returns")
        assert ray.wait([take.remote(1)], timeout=60)[0]
        again = fail.remote("dropped when there")
        assert ray.wait([take.remote(2)], timeout=60)[0]
        fail.remote("dropped before")
        caught(fail.remote("barrier"))
        caught(fail_twice.remote("barrier")[0])
        del kept, again
        broken = Broken.remote("constructor")
        caught(Broken.remote("seen").call.remote())
        broken.call.remote()
        del broken
        ray.get(take.remote(3), timeout=60)
        """,
    )
    for text in ("both returns", "dropped before", "dropped when there"):
        assert output.count(f"ValueError: {text}") == 1, output


def test_an_error_that_somebody_was_given_is_not_printed(start: Callable[..., Script]) -> None:
    output = run(
        start,
        """
        caught(fail.remote("got"))
        ray.wait([fail.remote("waited for")], timeout=60)
        caught(take.remote(fail.remote("argument")))
        caught(Broken.remote("constructor").call.remote())

        @ray.remote
        def get_inside(references):
            try:
                ray.get(references)
            except ValueError:
                pass

        ray.get(get_inside.remote([fail.remote("borrowed")]), timeout=60)

        @ray.remote(num_returns="streaming")
        def generate():
            yield 1
            raise ValueError("generator")

        generator = generate.remote()
        assert ray.get(next(generator), timeout=60) == 1
        caught(next(generator))
        del generator
        """,
    )
    assert "ValueError" not in output, output


def test_a_constructor_that_fails_unseen_is_printed_once(start: Callable[..., Script]) -> None:
    output = run(
        start,
        """
        broken = Broken.remote("nobody calls")
        ready, _ = ray.wait([broken.__ray_ready__.remote()], timeout=60)
        del broken, ready
        lonely = Broken.remote("calls are dropped")
        for _ in range(3):
            lonely.call.remote()
        caught(fail.remote("barrier"))
        ray.wait([lonely.__ray_ready__.remote()], timeout=60)
        """,
    )
    assert output.count("ValueError: calls are dropped") == 1, output


def test_unhandled_errors_are_hidden_on_request(start: Callable[..., Script]) -> None:
    output = run(
        start,
        """
        import os

        os.environ["RAY_MONO_IGNORE_UNHANDLED_ERRORS"] = "1"
        fail.remote("hidden")
        caught(fail.remote("barrier"))
        """,
    )
    assert "hidden" not in output.replace("hides", ""), output
