"""`init` where programs are typed: a notebook's kernel, whose event loop runs around every cell, and Python's
prompt."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

from tests.integration.scripts import END_TIMEOUT_S, Script

KERNEL = """
    import ast
    import asyncio
    import inspect
    import sys

    def cells(text):
        for number, cell in enumerate(text.split("# ----")):
            yield compile(cell, f"<cell {number}>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)

    async def kernel():
        # As in a notebook: code has no file, and what it defines is __main__'s.
        del globals()["__file__"]
        for cell in cells(open(sys.argv[1]).read()):
            running = eval(cell, globals())
            if inspect.isawaitable(running):
                await running

    asyncio.run(kernel())
"""
CELLS = """
import ray_mono as ray
context = ray.init(num_cpus=2)
# ----
class Helper:
    text = "old"

@ray.remote
def f():
    return Helper.text

@ray.remote(num_cpus=0)
class Actor:
    def say(self):
        return Helper.text

    async def later(self):
        return Helper.text

first = Actor.remote()
print(ray.get(f.remote()), ray.get(first.say.remote()))
# ----
class Helper:
    text = "new"

@ray.remote
def f():
    return Helper.text + "!"

@ray.remote(num_cpus=0)
class Actor:
    async def later(self):
        return Helper.text + "?"

@ray.remote
def count():
    yield from range(2)

second = Actor.remote()
print(ray.get([f.remote(), first.say.remote(), second.later.remote()]))
# ----
print(
    await f.remote(),
    await asyncio.gather(second.later.remote(), f.remote()),
    [await item async for item in count.remote()],
)
# ----
try:
    ray.init()
except RuntimeError as error:
    print("twice:", error)
ray.init(ignore_reinit_error=True)
old = f.remote()
# ----
ray.shutdown()
ray.init(num_cpus=1)
for use in (lambda: ray.get(old), lambda: ray.wait([old]), lambda: second.later.remote()):
    try:
        use()
    except ray.exceptions.RayError as error:
        print("over:", type(error).__name__)
print(ray.get(f.remote()))
ray.shutdown()
"""


def test_cells_of_a_notebook_define_again_await_and_start_over(
    start: Callable[..., Script], tmp_path: Path
) -> None:
    notebook = tmp_path / "notebook.txt"
    notebook.write_text(CELLS)
    output = start(KERNEL, str(notebook)).check_ended_well()
    said = [line for line in output.splitlines() if "INFO" not in line]
    assert said[:3] == ["old old", "['new!', 'old', 'new?']", "new! ['new?', 'new!'] [0, 1]"]
    assert said[3].startswith("twice:") and "ignore_reinit_error=True" in said[3]
    assert said[4:] == [
        "over: RaySystemError",
        "over: RaySystemError",
        "over: ActorHandleNotFoundError",
        "new!",
    ]


PROMPT = """
import ray_mono as ray
context = ray.init(num_cpus=1)
@ray.remote
def f():
    return "old"

ray.get(f.remote())
@ray.remote
def f():
    return "new"

ray.get(f.remote())
ray.get(ray.remote(lambda: 1 / 0).remote())
ray.get(f.remote())
"""


def test_functions_typed_at_the_prompt_are_the_newest_and_errors_end_nothing(session_base: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-i", "-q"],
        input=textwrap.dedent(PROMPT),
        capture_output=True,
        text=True,
        timeout=END_TIMEOUT_S,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert [line for line in done.stdout.splitlines() if "'" in line] == ["'old'", "'new'", "'new'"], (
        done.stderr
    )
    assert "RayTaskError(ZeroDivisionError)" in done.stderr
