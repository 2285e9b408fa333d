"""What every process needs runs out: descriptors, processes, room on the disk. What needs more waits or
fails, with an error that says what is missing; the cluster lives, and goes on when there is some again."""

from __future__ import annotations

from pathlib import Path

from tests.integration.scripts import Script

FEW_FILES = """
import resource
import ray_mono as ray

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
ray.init(address="local", num_cpus=2)

@ray.remote(num_cpus=0)
class Actor:
    def call(self):
        return "called"

@ray.remote
def add(one, other):
    return one + other

assert ray.get(add.remote(1, 2), timeout=60) == 3
actors = [Actor.remote() for _ in range(30)]
calls = [actor.call.remote() for actor in actors]
ready, waiting = ray.wait(calls, num_returns=30, timeout=8)
print("waiting:", len(waiting))
assert ray.get(ready, timeout=60) == ["called"] * len(ready)
assert ray.get([add.remote(number, 1) for number in range(100)], timeout=60) == list(range(1, 101))
# Those that go make room.
for actor in actors[:25]:
    ray.kill(actor)
assert ray.get(calls[25:], timeout=60) == ["called"] * 5
print("the end")
ray.shutdown()
"""


def run(program: str, directory: Path, *arguments: str) -> str:
    path = directory / "program.py"
    path.write_text(program)
    return Script(path, *arguments).check_ended_well()


def test_with_few_descriptors_there_are_few_workers_and_the_driver_is_told(
    session_base: Path, tmp_path: Path
) -> None:
    output = run(FEW_FILES, tmp_path)
    assert "waiting: 0" not in output
    assert "the raylet may open only 64 files, which is enough for 12 workers" in output
    assert "have 'ulimit -n' say more" in output and "the end" in output
    for log in session_base.glob("session_*/logs/*"):
        assert log.stat().st_size < 1 << 20, f"{log} is flooded"
