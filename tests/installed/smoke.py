"""One use of everything, by an installed ray_mono: run by check.py with the interpreter of a fresh
virtualenv, from an empty folder."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import ray_mono as ray

GET_TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 60.0


@ray.remote
def plus_one(x: Any) -> Any:
    return x + 1


@ray.remote(num_returns="streaming")
def count_up(n: int) -> Iterator[int]:
    yield from range(n)


@ray.remote
def fails() -> None:
    raise ValueError("on purpose")  # the traceback shows this line


@ray.remote
class Counter:
    def __init__(self) -> None:
        self.n = 0

    def add(self, n: int) -> int:
        self.n += n
        return self.n

    def fails(self) -> list[float]:
        return [1 / x for x in (0,)]  # and this one


@ray.remote
class Async:
    async def echo(self, value: Any) -> Any:
        await asyncio.sleep(0)
        return value


def get(refs: Any) -> Any:
    return ray.get(refs, timeout=GET_TIMEOUT_S)


def check_that_the_installed_package_is_meant() -> None:
    assert Path(sys.prefix) in Path(str(ray.__file__)).parents, ray.__file__


def check_tasks_actors_and_generators() -> None:
    assert get([plus_one.remote(i) for i in range(20)]) == list(range(1, 21))
    counter = Counter.remote()
    assert get([counter.add.remote(1) for _ in range(5)]) == [1, 2, 3, 4, 5]
    actor = Async.remote()
    assert get([actor.echo.remote(i) for i in range(5)]) == list(range(5))
    assert [get(ref) for ref in count_up.remote(5)] == list(range(5))


def check_that_errors_name_file_and_source_line() -> None:
    for ref, error, line in (
        (fails.remote(), ValueError, 'raise ValueError("on purpose")  # the traceback shows this line'),
        (Counter.remote().fails.remote(), ZeroDivisionError, "return [1 / x for x in (0,)]  # and this one"),
    ):
        try:
            get(ref)
            raise AssertionError("it did not fail")
        except error as raised:
            text = str(raised)
        assert f'File "{__file__}", line ' in text and line in text, text


def check_large_values_of_numpy_and_arrow() -> None:
    array = np.arange(300_000, dtype=np.float64).reshape(3, -1)
    assert np.array_equal(get(plus_one.remote(ray.put(array))), array + 1)
    assert get(plus_one.remote(np.float32(1.5))) == 2.5
    table = pa.table({"n": np.arange(100_000), "s": [str(i % 7) for i in range(100_000)]})
    actor = Async.remote()
    assert get(actor.echo.remote(table)).equals(table)


def command(*arguments: str) -> str:
    done = subprocess.run(
        [*arguments], capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    return done.stdout


def check_the_command_line() -> None:
    cli = str(Path(sys.executable).parent / "ray-mono")
    out = command(cli, "start", "--head", "--port", "0", "--num-cpus", "2")
    address = re.search(r"A cluster runs at (\S+:\d+)", out)
    assert address, out
    try:
        assert "1 alive" in command(cli, "status", "--address", address[1])
        program = (
            "import ray_mono as ray; ray.init('auto');"
            " print(ray.get(ray.remote(lambda: 6 * 7).remote(), timeout=60))"
        )
        assert command(sys.executable, "-c", program).strip() == "42"
    finally:
        command(cli, "stop", "--address", address[1])


def check_programs_that_say_import_ray() -> None:
    program = (
        "import ray\n"
        "ray.init(num_cpus=1)\n"
        "print(ray.get(ray.remote(lambda: ray.__name__).remote(), timeout=60))\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "prog.py").write_text(program)
        assert command(sys.executable, "-m", "ray_mono.compat", f"{folder}/prog.py").strip()


def main() -> None:
    os.environ.pop("RAY_MONO_ADDRESS", None)
    ray.init(num_cpus=2)
    check_that_the_installed_package_is_meant()
    check_tasks_actors_and_generators()
    check_that_errors_name_file_and_source_line()
    check_large_values_of_numpy_and_arrow()
    ray.shutdown()
    check_the_command_line()
    check_programs_that_say_import_ray()


if __name__ == "__main__":
    main()
