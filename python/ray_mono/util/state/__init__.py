"""The state API, which ray_mono does not have yet: every function says so. `ray-mono status` and
`ray_mono.nodes()` tell a part of it."""

from __future__ import annotations

from ray_mono._private.later import refusing

_NAMES = (
    "get_actor get_job get_log get_node get_objects get_placement_group get_task get_worker list_actors"
    " list_cluster_events list_jobs"
    " list_logs list_nodes list_objects list_placement_groups list_runtime_envs list_tasks list_workers"
    " summarize_actors"
    " summarize_objects summarize_tasks StateApiClient".split()
)
__all__ = list(_NAMES)  # pyright: ignore[reportUnsupportedDunderAll]

for _name in _NAMES:
    globals()[_name] = refusing(f"ray_mono.util.state.{_name}", "the state API is")
