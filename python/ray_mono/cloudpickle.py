"""cloudpickle, as ray_mono uses it to ship functions and classes: by value where nobody could import them."""

from cloudpickle import load, loads, register_pickle_by_value, unregister_pickle_by_value

from ray_mono.common.code_pickler import CodePickler as CloudPickler
from ray_mono.common.code_pickler import CodePickler as Pickler
from ray_mono.common.code_pickler import dump, dumps

__all__ = [
    "CloudPickler",
    "Pickler",
    "dump",
    "dumps",
    "load",
    "loads",
    "register_pickle_by_value",
    "unregister_pickle_by_value",
]
