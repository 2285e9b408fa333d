"""What libraries import of Ray is there under ray_mono.compat, without a warning; what is not there says so
when it is used."""

from __future__ import annotations

from pathlib import Path

from tests.integration.clusters import run_python


def run(code: str) -> str:
    """What a program prints that has installed compat, where every warning is an error."""
    done = run_python(
        "-W", "error", "-c", f"import ray_mono.compat\nray_mono.compat.install()\nimport ray\n{code}"
    )
    assert done.status == 0, done.error
    return done.out.strip()


LINES = [
    "from ray._raylet import ObjectRef, ActorID, JobID, NodeID, ObjectRefGenerator",
    "assert ObjectRef is ray.ObjectRef",
    "from ray._private.services import get_node_ip_address; assert get_node_ip_address().count('.') == 3",
    "from ray._private.worker import BaseContext, RESTORE_WORKER_MODE, SPILL_WORKER_MODE, LOCAL_MODE",
    "import ray._private.worker as w; assert w._global_node is None and w._post_init_hooks == []",
    "from ray._private.profiling import profile",
    "from ray._private.node import Node, LocalNode",
    "from ray._private import node, parameter, services",
    "import ray._private.services as again; assert again is services",
    "assert node.Node is Node and parameter.RayParams",
    "assert services.get_node_ip_address is get_node_ip_address",
    "from ray.util.annotations import PublicAPI, DeveloperAPI, Deprecated",
    "assert PublicAPI(stability='beta')(lambda: 1)() == 1",
    "from ray.util.actor_group import ActorGroup",
    "import ray.util.actor_group as group; assert ray.util.actor_group is group",
    "from ray.util.iter import LocalIterator, ParallelIterator, ParallelIteratorWorker",
    "from ray.util.iter import _NextValueNotReady, from_items",
    "from ray._private.worker import global_worker",
    "from ray._private.state import actors, jobs, timeline, state",
    "assert callable(state.get_draining_nodes)",
    "from ray._private.client_mode_hook import client_mode_hook, client_mode_wrap",
    "assert client_mode_hook()(len) is client_mode_wrap(len) is len",
    "from ray.experimental.state.api import list_nodes as again; assert again is ray.util.state.list_nodes",
    "ray.experimental.internal_kv, ray.experimental.locations, ray.experimental.tqdm_ray, ray.client_builder",
    "ray.util.actor_pool.ActorPool, ray.util.client_connect, ray.util.debug.log_once, ray.util.serialization",
    "from ray.experimental import get_object_locations, get_local_object_locations",
    "from ray.util.state.api import list_nodes",
    "from ray.util.state.common import NodeState",
    "from ray.util.state.exception import *",
    "from ray.util.client import ray as client; assert not client.is_connected()",
    "import ray.autoscaler.sdk; assert ray.autoscaler.sdk.request_resources(num_cpus=4) is None",
    "assert ray.cloudpickle.loads(ray.cloudpickle.dumps_debug([1])) == [1]",
    "from ray.util.client.common import ClientActorHandle; assert not isinstance(1, ClientActorHandle)",
    "from ray._private.ray_constants import MIN_RESOURCE_GRANULARITY",
    "from ray import ray_constants; ray_constants.DEFAULT_PORT",
    "from ray._private.state import available_resources_per_node, total_resources_per_node",
    "from ray import logger; from ray.util import PublicAPI; assert ray.cloudpickle.pickle.loads",
    "assert ray.__version__ == '2.60.0'",
    "from ray.runtime_context import RuntimeContext; assert not RuntimeContext().worker.connected",
    "import sys; sys.modules['ray.train'] = sys; from ray import train; assert train is ray.train is sys",
    "import pickle; assert pickle.loads(ray.cloudpickle.dumps(lambda: ray))() is ray",
]


def test_every_name_of_ray_that_libraries_import_is_there() -> None:
    run("\n".join(LINES))


def test_ray_data_is_missed_only_by_those_who_use_it() -> None:
    code = """
import ray.data
from ray.data import Dataset, from_pandas_refs
assert not isinstance(1, Dataset)
for use in (lambda: from_pandas_refs([1]), lambda: ray.data.range(3), lambda: Dataset.from_items):
    try:
        use()
    except ImportError as error:
        print("not part of ray_mono yet" in str(error))
"""
    assert run(code) == "True\nTrue\nTrue"


def test_an_unknown_name_is_an_error_as_ever() -> None:
    code = """
for line in ("from ray import tune", "import ray.nonsense", "from ray.util import nonsense"):
    try:
        exec(line)
    except ImportError:
        print("ImportError")
print(hasattr(ray, "tune"), hasattr(ray.util, "nonsense"))
"""
    assert run(code) == "ImportError\n" * 3 + "False False"


def test_a_package_that_somebody_brings_is_found_below_ray() -> None:
    code = """
import os, sys, tempfile
folder = tempfile.mkdtemp()
os.mkdir(os.path.join(folder, "tune"))
open(os.path.join(folder, "tune", "__init__.py"), "w").write("VALUE = 3")
import ray_mono
ray_mono.__path__.append(folder)
from ray import tune
print(tune.VALUE, ray.tune is tune)
"""
    assert run(code) == "3 True"


def test_a_shell_of_the_program_finds_the_command_line_as_ray(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        "import os, shutil, subprocess\n"
        "def run(*words):\n"
        "    return subprocess.run(['ray', *words], capture_output=True, text=True, check=True).stdout\n"
        "print(run('--help').split()[1], run('--version').split()[:3] == ['ray,', 'version', '2.60.0'])\n"
        "print('--timeout' in run('health-check', '--help'))\n"
        "print(os.path.dirname(shutil.which('ray')))\n"
    )
    done = run_python("-m", "ray_mono.compat", str(script))
    *told, folder = done.out.split()
    assert (done.status, told) == (0, ["ray", "True", "True"]), done.error
    assert not Path(folder).exists()
