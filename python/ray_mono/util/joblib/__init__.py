"""joblib, and with it scikit-learn, on a cluster.

    register_ray()
    with joblib.parallel_config(backend="ray", n_jobs=-1):
        search.fit(X, y)

n_jobs=-1 stands for as many processes as the cluster has CPUs.
"""

__all__ = ["register_ray"]


def register_ray() -> None:
    """Makes "ray" a backend of joblib, for joblib.parallel_config and joblib.parallel_backend.

    Options of the processes may be given there, e.g. parallel_config(backend="ray", n_jobs=-1,
    ray_remote_args={"num_cpus": 2}).

    Raises ImportError where joblib is not installed.
    """
    try:
        from joblib.parallel import register_parallel_backend
    except ImportError:
        raise ImportError("register_ray() needs the package joblib: pip install joblib") from None
    from ray_mono.util.joblib.ray_backend import RayBackend

    register_parallel_backend("ray", RayBackend)
