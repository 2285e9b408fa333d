"""Tensors are values: a view costs what it holds, and is afterwards what it was before."""

import pickle

import ray
import torch

from ray_mono.core_worker.values.serialization import deserialize, serialize

ROWS = torch.arange(200_000.0).reshape(2000, 100)
ROW_BYTES = 100 * 4
FRAME_BYTES = 2000


def stored(value):
    serialized = serialize(value)
    return serialized.size_bytes, deserialize(serialized.metadata, serialized.to_bytes())


def leaf(tensor):
    return tensor.detach().requires_grad_()


def named(tensor):
    tensor.label = "mine"
    return tensor


class Image(torch.Tensor):
    pass


class Sampled(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return super().__torch_function__(func, types, args, kwargs)


VIEWS = {
    "rows": ROWS[10:20],
    "no rows": ROWS[10:10],
    "every hundredth row": ROWS[::100][:10],
    "columns": ROWS[:, :1][:1000],
    "one number": ROWS[3, 4],
    "transposed rows": ROWS[10:20].T,
    "expanded": ROWS[3, :1].expand(100_000),
    "windows": ROWS[10].unfold(0, 50, 1),
    "of bits": (ROWS > 5)[10:20],
    "of another type": ROWS.view(torch.int32)[10:20],
    "with gradient": leaf(ROWS[10:20]),
    "made by gradient": ROWS.clone().requires_grad_()[10:20] * 2,
    "parameter": torch.nn.Parameter(ROWS[10:20]),
    "complex": torch.view_as_complex(ROWS.reshape(-1, 2))[10:20].conj(),
    "with a name": named(ROWS[10:20]),
    "sparse": ROWS[10:20, :10].to_sparse(),
    "sparse rows": torch.sparse_coo_tensor(torch.arange(4000).reshape(1, -1)[:, :10], ROWS[:10], (10, 100)),
    "of a subclass": ROWS[10:20].as_subclass(Image),
    "of a subclass, with a name": named(ROWS.as_subclass(Sampled)[10:20]),
    "of a subclass, with gradient": leaf(ROWS.as_subclass(Image)[10:20]),
    "parameter of a subclass": torch.nn.Parameter(ROWS.as_subclass(Image)[10:20]),
    "in inference": torch.inference_mode()(lambda: ROWS.clone()[10:20])(),
}
for name, view in VIEWS.items():
    size_bytes, back = stored({"inside": view})
    back = back["inside"]
    assert size_bytes < 2 * 10 * ROW_BYTES + FRAME_BYTES, (name, size_bytes)
    plain = pickle.loads(pickle.dumps(view))
    assert type(back) is type(plain) and back.dtype is view.dtype and back.shape == view.shape, name
    assert back.requires_grad is plain.requires_grad and back.layout is view.layout, name
    assert torch.equal(back.to_dense(), view.to_dense()), name
    assert back.__dict__ == plain.__dict__, name

# What is all of its storage goes as it is, and a meta tensor has nothing that could go.
assert stored(ROWS.T)[1].stride() == (1, 100)
assert stored(ROWS.to("meta")[10:20])[1].device.type == "meta"

# One tensor that is met twice stays one; two of one storage are two afterwards, as with pickle.
model = torch.nn.ModuleDict({"a": torch.nn.Linear(10, 10), "b": torch.nn.Linear(10, 10)})
model["b"].weight = model["a"].weight
back = stored(model)[1]
assert back["a"].weight is back["b"].weight
view = ROWS[10:20]
first, second = stored([view, view])[1]
assert first is second
whole, part = stored([ROWS[:20], ROWS[:1]])[1]
whole[0, 0] = -1
assert part[0, 0] == 0

ray.init(num_cpus=1)


@ray.remote
def doubled(tensor):
    tensor *= 2  # the task's own
    return tensor[:3], tensor.shape


part, shape = ray.get(doubled.remote(ray.put(ROWS[10:20])))
assert torch.equal(part, ROWS[10:13] * 2) and shape == (10, 100)
