"""More data than memory: N GB are written through a store of N/10, and read back in another order.

    python bench/spill.py --gb 2 --directory /path/on/the/disk [--peer PYTHON]

Beside it stands the floor: one process that writes the same bytes in files of the same size with fdatasync,
evicts them from the page cache, and reads them back in the same order. Ours reads from a disk that was
evicted in the same way. Of the bytes that ours writes the last tenth or so stays in the store. --peer names
the interpreter of an installed Ray, which does the same program; its files are evicted, too. All sides take
turns, and the medians are told: of the speeds, and of each round's ratio to the floor.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MB = 10**6
PIECE_BYTES = 10 * MB
FILE_BYTES = 100 * MB
Seconds = list[tuple[float, float]]
"""To write and to read, of each round."""

PROGRAM = """
import json, os, pathlib, random, sys, time
import numpy as np
import {module} as ray

directory, num_pieces, piece_bytes = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
config = json.dumps({{"type": "filesystem", "params": {{"directory_path": str(directory)}}}})
ray.init(address="local", num_cpus=2, object_store_memory=num_pieces * piece_bytes // 10,
         log_to_driver=False, _system_config={{"object_spilling_config": config}})
piece = np.random.default_rng(1).integers(0, 255, piece_bytes, np.uint8)
order = list(range(num_pieces))
random.Random(1).shuffle(order)
started = time.perf_counter()
references = []
for number in range(num_pieces):
    piece[:8] = np.frombuffer(number.to_bytes(8, "little"), np.uint8)
    references.append(ray.put(piece))
wrote = time.perf_counter() - started
for path in directory.rglob("*"):
    if path.is_file():
        fd = os.open(path, os.O_RDONLY)
        os.fdatasync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
started = time.perf_counter()
for number in order:
    value = ray.get(references[number])
    assert int.from_bytes(value[:8].tobytes(), "little") == number and value[-1] == piece[-1]
    del value
print(json.dumps([wrote, time.perf_counter() - started]))
"""


def floor(directory: Path, num_pieces: int) -> tuple[float, float]:
    """Seconds to write and to read."""
    piece = memoryview(random.Random(1).randbytes(PIECE_BYTES))
    per_file = FILE_BYTES // PIECE_BYTES
    paths = [directory / str(number) for number in range(-(-num_pieces // per_file))]
    started = time.perf_counter()
    for number, path in enumerate(paths):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        for _ in range(min(per_file, num_pieces - number * per_file)):
            assert os.write(fd, piece) == PIECE_BYTES
        os.fdatasync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    wrote_s = time.perf_counter() - started
    order = list(range(num_pieces))
    random.Random(1).shuffle(order)
    target = memoryview(bytearray(PIECE_BYTES))
    started = time.perf_counter()
    for number in order:
        fd = os.open(paths[number // per_file], os.O_RDONLY)
        assert os.preadv(fd, [target], number % per_file * PIECE_BYTES) == PIECE_BYTES
        os.close(fd)
    return wrote_s, time.perf_counter() - started


def program(directory: Path, num_pieces: int, python: str, module: str) -> tuple[float, float]:
    """Seconds to write and to read."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    if python != sys.executable:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, "-c", PROGRAM.format(module=module)]
    arguments = [str(directory), str(num_pieces), str(PIECE_BYTES)]
    done = subprocess.run([*command, *arguments], env=environment, stdout=subprocess.PIPE, check=True)
    wrote_s, read_s = json.loads(done.stdout.splitlines()[-1])
    return wrote_s, read_s


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gb", type=float, default=2.0, help="how much is written (default: 2)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side (default: 3)")
    parser.add_argument("--directory", help="on the disk that is measured (default: the temporary one)")
    parser.add_argument("--peer", metavar="PYTHON", help="an interpreter that has Ray")
    arguments = parser.parse_args()
    num_pieces = int(arguments.gb * 1000 * MB // PIECE_BYTES)
    sides = {
        "floor": lambda place: floor(place, num_pieces),
        "ray_mono": lambda place: program(place, num_pieces, sys.executable, "ray_mono"),
    }
    if arguments.peer:
        sides["Ray"] = lambda place: program(place, num_pieces, arguments.peer, "ray")
    taken: dict[str, Seconds] = {name: [] for name in sides}
    for turn in range(arguments.rounds):
        for name, side in sides.items():
            place = Path(tempfile.mkdtemp(prefix="spill_bench_", dir=arguments.directory))
            try:
                seconds = side(place)
            finally:
                shutil.rmtree(place)
            taken[name].append(seconds)
            wrote_s, read_s = seconds
            print(f"round {turn + 1} {name:9} wrote in {wrote_s:.2f} s, read in {read_s:.2f} s", flush=True)
    for name in sides:
        print(told(name, num_pieces * PIECE_BYTES / MB, taken[name], taken["floor"]))


def told(name: str, megabytes: float, taken: Seconds, floors: Seconds) -> str:
    """The line of one side."""
    write_speed, read_speed = (megabytes / statistics.median(column) for column in zip(*taken, strict=True))
    ratios = [sum(of_floor) / sum(ours) for of_floor, ours in zip(floors, taken, strict=True)]
    spread = f"{statistics.median(ratios):.2f} of the floor ({min(ratios):.2f} to {max(ratios):.2f})"
    return f"{name:9} {write_speed:6.0f} MB/s written, {read_speed:6.0f} MB/s read, {spread}"


if __name__ == "__main__":
    main()
