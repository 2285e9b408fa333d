"""What a process does before it is forked, so that its children share its memory for long."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import unittest
from typing import Any

# Makes holes of one size all over its memory, and says where its next objects of that size lie.
FRAGMENTED = """
    import gc, json
    from ray_mono.core_worker.process import shared_pages

    def made(count):
        return [bytes({size_bytes} - 33) for _ in range(count)]

    held = made(20_000)
    del held[::100]
    first = made(200)
    before = [id(each) >> 12 for each in first]
    del first
    shared_pages.prepare_to_fork()
    after = [id(each) >> 12 for each in made(200)]
    print(json.dumps([len(set(before)), len(set(after)), gc.get_freeze_count()]))
"""


def run(program: str, **variables: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **variables},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class PrepareToFork(unittest.TestCase):
    def test_objects_made_afterwards_lie_side_by_side(self) -> None:
        """A child then writes to few of the pages that it shares."""
        for size_bytes in (64, 256):
            with self.subTest(size_bytes=size_bytes):
                before, after, _ = run(FRAGMENTED.replace("{size_bytes}", str(size_bytes)))
                self.assertGreater(before, 150, "no holes to fill")
                self.assertLess(after, 200 * size_bytes // 4096 + 12)

    def test_the_collector_leaves_alone_what_is_there(self) -> None:
        _, _, num_frozen = run(FRAGMENTED.replace("{size_bytes}", "64"))
        self.assertGreater(num_frozen, 1000)

    def test_it_ends_also_where_python_has_another_allocator(self) -> None:
        _, _, num_frozen = run(FRAGMENTED.replace("{size_bytes}", "64"), PYTHONMALLOC="malloc")
        self.assertGreater(num_frozen, 1000)


if __name__ == "__main__":
    unittest.main()
