"""Daft's distributed runner: a query in tasks and actors."""

import daft
import ray
from daft import col

ray.init(num_cpus=2)
daft.set_runner_ray()
df = daft.from_pydict({"a": list(range(1000)), "k": [i % 5 for i in range(1000)]})
sums = df.where(col("a") % 2 == 0).groupby("k").agg(col("a").sum()).sort("k").to_pydict()
assert sums["a"] == [sum(i for i in range(0, 1000, 2) if i % 5 == k) for k in range(5)]
assert df.with_column("b", col("a") * 2).sort("a").limit(3).to_pydict()["b"] == [0, 2, 4]
assert df.repartition(4).count_rows() == 1000
