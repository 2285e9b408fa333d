"""Frames of polars, also as Arrow, and sparse matrices are values: a slice costs what it holds."""

import numpy as np
import polars as pl
import ray
import scipy.sparse

from ray_mono.core_worker.values.serialization import deserialize, serialize

NUMBERS = range(20_000)
FRAME = pl.DataFrame(
    {
        "number": NUMBERS,
        "text": [f"a text of more than twelve letters: {number}" for number in NUMBERS],
        "struct": [{"x": number, "y": "two"} for number in NUMBERS],
        "list": [[f"a text of more than twelve letters: {number}", "short"] for number in NUMBERS],
        "category": pl.Series([str(number % 3) for number in NUMBERS], dtype=pl.Categorical),
        "choice": pl.Series([str(number % 3) for number in NUMBERS], dtype=pl.Enum(["0", "1", "2"])),
        "bytes": [b"x" * 20 for _ in NUMBERS],
        "array": pl.Series(np.zeros((len(NUMBERS), 3))),
    }
)


def stored(value):
    serialized = serialize(value)
    return serialized.size_bytes, deserialize(serialized.metadata, serialized.to_bytes())


for column in FRAME.columns:
    for part in (slice(1000, 1030), slice(5, 5)):
        for value in (FRAME[column][part], FRAME[[column]][part]):
            size_bytes, back = stored(value)
            assert size_bytes < 8000, (column, size_bytes)
            assert type(back) is type(value) and back.equals(value)
        newest = FRAME[column][part].to_arrow(compat_level=pl.CompatLevel.newest())
        size_bytes, back = stored(newest)
        assert size_bytes < 8000, (column, newest.type, size_bytes)
        assert back.equals(newest)

# A lazy frame is a plan: it holds what it names.
size_bytes, back = stored(FRAME[["number", "text"]][1000:1030].lazy().filter(pl.col("number") < 1010))
assert size_bytes < 10_000 and back.collect()["number"].to_list() == list(range(1000, 1010))

matrix = scipy.sparse.random(2000, 2000, 0.05, format="csr", random_state=0)
for value in (
    matrix[10:20],
    matrix[:, 10:20],
    matrix.tocsc()[:, 10:20],
    scipy.sparse.csr_array(matrix)[10:20],
):
    size_bytes, back = stored(value)
    assert size_bytes < 40_000 and type(back) is type(value) and (back != value).nnz == 0

ray.init(num_cpus=1)


@ray.remote
def longest(frame):
    return frame.select(pl.col("text").str.len_chars().max()).item()


assert ray.get(longest.remote(ray.put(FRAME[1000:1030]))) == 40
