"""`ray_mono.worker`, under which older programs find what `ray_mono` offers itself."""

from ray_mono._private.state import available_resources as available_resources
from ray_mono._private.state import cluster_resources as cluster_resources
from ray_mono._private.state import nodes as nodes
from ray_mono._private.worker import LOCAL_MODE as LOCAL_MODE
from ray_mono._private.worker import SCRIPT_MODE as SCRIPT_MODE
from ray_mono._private.worker import WORKER_MODE as WORKER_MODE
from ray_mono._private.worker import get as get
from ray_mono._private.worker import get_actor as get_actor
from ray_mono._private.worker import get_gpu_ids as get_gpu_ids
from ray_mono._private.worker import init as init
from ray_mono._private.worker import is_initialized as is_initialized
from ray_mono._private.worker import kill as kill
from ray_mono._private.worker import put as put
from ray_mono._private.worker import run_function_on_all_workers as run_function_on_all_workers
from ray_mono._private.worker import shutdown as shutdown
from ray_mono._private.worker import wait as wait
