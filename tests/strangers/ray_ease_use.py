"""ray-ease turns functions and classes into tasks and actors by a decorator."""

import ray
import ray_ease as rez

rez.init(num_cpus=2)


@rez.parallelize
def square(x):
    return x * x


@rez.parallelize
class Counter:
    def __init__(self):
        self.n = 0

    def add(self, n):
        self.n += n
        return self.n


assert ray.is_initialized()
assert rez.retrieve([square(i) for i in range(5)], ordered=True) == [0, 1, 4, 9, 16]
counter = Counter()
assert rez.retrieve(counter.add(2)) == 2
