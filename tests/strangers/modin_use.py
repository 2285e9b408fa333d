"""Modin's data frames are pandas' on a cluster: the same answers."""

import os

os.environ.update(MODIN_ENGINE="ray", MODIN_CPUS="2")

import numpy as np
import pandas
import ray
from pandas.testing import assert_frame_equal

ray.init(num_cpus=2)
import modin.pandas as pd  # noqa: E402 - asks what runs when it is imported

df = pd.DataFrame(
    {"a": np.arange(10_000) % 7, "b": np.arange(10_000.0), "s": [str(i % 5) for i in range(10_000)]}
)
same = df._to_pandas()
small = {"a": [1, 2], "z": [3, 4]}


def ordered(frame):
    return frame.sort_values("b").reset_index(drop=True)


assert_frame_equal(
    df.groupby("a").sum(numeric_only=True)._to_pandas(), same.groupby("a").sum(numeric_only=True)
)
assert_frame_equal(
    df.sort_values("b", ascending=False).head(7)._to_pandas(), same.sort_values("b", ascending=False).head(7)
)
assert_frame_equal(
    ordered(df.merge(pd.DataFrame(small), on="a")._to_pandas()),
    ordered(same.merge(pandas.DataFrame(small), on="a")),
)
assert (df["b"].apply(lambda x: x * 2)._to_pandas() == same["b"] * 2).all()
df.to_csv("modin.csv", index=False)
assert_frame_equal(pd.read_csv("modin.csv", dtype={"s": str})._to_pandas(), same)
