"""Counts the words of a generated text by map and reduce.

    python map_reduce.py [--words N] [--maps N] [--reduces N] [--top N] [--seed N]

The text lies in the object store, in pieces. Each map task counts one piece and returns a partition of its
counts for every reducer; each reducer adds up its partition of all the pieces. A word's partition follows
from its letters, not from `hash`, which differs from process to process. The driver puts the partitions
together and checks them against a count of its own.
"""

from __future__ import annotations

import argparse
import collections
import random
import zlib

import ray

Counts = collections.Counter[str]
SYLLABLES = "ba de fi go hu la me ni po ru sa te vi wo zu".split()
VOCABULARY = 400


def generate(num_words: int, seed: int) -> list[str]:
    """Words, of which the n-th most frequent comes about 1/n as often as the first."""
    rng = random.Random(seed)
    words = sorted({"".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(VOCABULARY)})
    rng.shuffle(words)
    return rng.choices(words, weights=[1 / rank for rank in range(1, len(words) + 1)], k=num_words)


@ray.remote
def count(piece: list[str], num_partitions: int) -> list[Counts]:
    """The words of a piece, in partitions: one return value for each."""
    partitions: list[Counts] = [collections.Counter() for _ in range(num_partitions)]
    for word in piece:
        partitions[zlib.crc32(word.encode()) % num_partitions][word] += 1
    return partitions


@ray.remote
def add_up(*partitions: Counts) -> Counts:
    total: Counts = collections.Counter()
    for partition in partitions:
        total.update(partition)
    return total


def count_in_parallel(pieces: list[ray.ObjectRef], num_reduces: int) -> list[Counts]:
    """The totals of each reducer."""
    mapped = [count.options(num_returns=num_reduces).remote(piece, num_reduces) for piece in pieces]
    return ray.get([add_up.remote(*partitions) for partitions in zip(*mapped, strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--words", type=int, default=200_000, help="of the text (default: %(default)s)")
    parser.add_argument("--maps", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--reduces", type=int, default=3, help="at least 2 (default: %(default)s)")
    parser.add_argument(
        "--top", type=int, default=10, help="how many of the most frequent to print (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=5, help="default: %(default)s")
    arguments = parser.parse_args()
    if arguments.words < 1 or arguments.maps < 1 or arguments.reduces < 2:
        parser.error("--words and --maps must be at least 1, and --reduces at least 2")

    ray.init(num_cpus=4)
    text = generate(arguments.words, arguments.seed)
    pieces = [ray.put(text[number :: arguments.maps]) for number in range(arguments.maps)]
    totals = count_in_parallel(pieces, arguments.reduces)
    ray.shutdown()

    for number, total in enumerate(totals):
        print(f"reducer {number}: {total.total()} words, {len(total)} different")
    merged: Counts = collections.Counter()
    for total in totals:
        merged.update(total)
    for word, number in sorted(merged.items(), key=lambda item: (-item[1], item[0]))[: arguments.top]:
        print(f"{number:>7}  {word}")
    print("as counted by the driver alone:", merged == collections.Counter(text))


if __name__ == "__main__":
    main()
