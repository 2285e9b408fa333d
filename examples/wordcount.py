"""Counts the words of Python's own standard library: tasks count, a tree of actors adds up, and a serial
count checks the result.

    python examples/wordcount.py [--top N] [--batch-kib N]

Every .py and .txt file under the running Python's library (without site-packages) is read. Files are grouped
into batches, each counted by one task; as counts become ready they go, as references, to leaf reducers, whose
totals a root reducer adds up. The driver then counts everything once more by itself. It exits with 1 if the
two counts differ.
"""

from __future__ import annotations

import argparse
import collections
import re
import sys
import sysconfig
import time
from pathlib import Path

import ray_mono as ray
from ray_mono.experimental.tqdm_ray import tqdm

Counts = collections.Counter[bytes]
WORD = re.compile(rb"[a-z]+")
NUM_LEAVES = 4


def library_files() -> list[tuple[str, int]]:
    """(path, size in bytes) of every .py and .txt file of the standard library, in a fixed order."""
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if (
            path.suffix in (".py", ".txt")
            and "site-packages" not in parts
            and "dist-packages" not in parts
            and path.is_file()
        ):
            found.append((str(path), path.stat().st_size))
    return found


def batches_of(files: list[tuple[str, int]], batch_bytes: int) -> list[list[str]]:
    """Files in groups of about batch_bytes."""
    batches: list[list[str]] = [[]]
    size = 0
    for path, file_bytes in files:
        if size and size + file_bytes > batch_bytes:
            batches.append([])
            size = 0
        batches[-1].append(path)
        size += file_bytes
    return batches


def count_words(paths: list[str]) -> Counts:
    """How often each word is in these files; a word is a run of ASCII letters, in lower case."""
    counts: Counts = collections.Counter()
    for path in paths:
        counts.update(WORD.findall(Path(path).read_bytes().lower()))
    return counts


@ray.remote
def count_batch(paths: list[str]) -> Counts:
    return count_words(paths)


@ray.remote(num_cpus=0)
class Reducer:
    """Adds up counts. Leaves get the counts of tasks, the root gets the totals of the leaves."""

    def __init__(self) -> None:
        self.total: Counts = collections.Counter()

    def add(self, counts: Counts) -> None:
        self.total.update(counts)

    def result(self) -> Counts:
        return self.total


def count_in_parallel(batches: list[list[str]]) -> Counts:
    """The whole job on the cluster; a bar shows the batches that are done."""
    bar = tqdm(desc="counting", total=len(batches), unit="batch", flush_interval_s=0.1)
    leaves = [Reducer.remote() for _ in range(NUM_LEAVES)]
    pending = [count_batch.remote(batch) for batch in batches]
    added = []
    num_done = 0
    while pending:
        ready, pending = ray.wait(pending, num_returns=1)
        for counts in ready:
            # The reference goes to the reducer: the counts do not pass through the driver.
            added.append(leaves[num_done % NUM_LEAVES].add.remote(counts))
            num_done += 1
            bar.update(1)
    bar.close()
    root = Reducer.remote()
    # Calls of one caller run in order, so each leaf's result follows all its additions.
    ray.get(added + [root.add.remote(leaf.result.remote()) for leaf in leaves])
    return ray.get(root.result.remote())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--top",
        type=int,
        default=10,
        help="how many of the most frequent words to print (default: %(default)s)",
    )
    parser.add_argument(
        "--batch-kib",
        type=int,
        default=2048,
        help="about how much each task reads (default: %(default)s KiB)",
    )
    parser.add_argument(
        "--address", default=None, help="a running cluster to use, e.g. auto; default: a new one"
    )
    arguments = parser.parse_args()
    if arguments.batch_kib < 1 or arguments.top < 0:
        parser.error("--batch-kib must be at least 1 and --top at least 0")

    files = library_files()
    total_bytes = sum(size for _, size in files)
    batches = batches_of(files, arguments.batch_kib << 10)

    started_s = time.perf_counter()
    ray.init(address=arguments.address)
    init_s = time.perf_counter() - started_s
    started_s = time.perf_counter()
    counts = count_in_parallel(batches)
    parallel_s = time.perf_counter() - started_s
    ray.shutdown()

    started_s = time.perf_counter()
    serial = count_words([path for path, _ in files])
    serial_s = time.perf_counter() - started_s

    print(f"{len(files)} files, {total_bytes:,} bytes, {counts.total():,} words, {len(counts):,} different")
    for word, number in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: arguments.top]:
        print(f"{number:>9,}  {word.decode()}")
    print(
        f"cluster up in {init_s:.2f} s; counted in {parallel_s:.2f} s by {len(batches)} tasks,"
        f" in {serial_s:.2f} s by one process"
    )
    if counts != serial:
        print("The two counts differ.")
        return 1
    print("Both counts are equal.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
