"""Hamilton runs a dataflow's functions as tasks, one graph at once and one task for each node."""

import hamilton_flow
import ray
from hamilton import base, driver
from hamilton.plugins import h_ray

ray.init(num_cpus=2)
adapter = h_ray.RayGraphAdapter(result_builder=base.PandasDataFrameResult())
table = driver.Driver({}, hamilton_flow, adapter=adapter).execute(["spend", "spend_per_signup"])
assert list(table["spend_per_signup"]) == [10.0, 10.0, 10.0]

ray.shutdown()  # the executor begins a session of its own
builder = driver.Builder().with_modules(hamilton_flow).with_adapters(base.DictResult())
builder = builder.enable_dynamic_execution(allow_experimental_mode=True)
dynamic = builder.with_remote_executor(h_ray.RayTaskExecutor(num_cpus=2)).build()
assert list(dynamic.execute(["spend_per_signup"])["spend_per_signup"]) == [10.0, 10.0, 10.0]
