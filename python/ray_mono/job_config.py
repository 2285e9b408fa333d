"""Settings of one job: of a driver and of everything that runs for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class JobConfig:
    """Given to `init(job_config=...)`; `init`'s own arguments win.

    Attributes:
        code_search_path: directories put on every worker's sys.path.
        runtime_env: of tasks and actors that name none.
        metadata: texts about the job, for people and tools.
        ray_namespace: where its named actors live; a random one if None.
        default_actor_lifetime: "detached" or "non_detached".
    """

    code_search_path: Sequence[str] = ()
    runtime_env: Mapping[str, Any] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    ray_namespace: str | None = None
    default_actor_lifetime: str = "non_detached"

    def __post_init__(self) -> None:
        if isinstance(self.code_search_path, str) or not all(
            isinstance(e, str) for e in self.code_search_path
        ):
            raise TypeError(f"code_search_path must be a list of directories, got {self.code_search_path!r}")
        if self.default_actor_lifetime not in ("detached", "non_detached"):
            raise ValueError(
                f"default_actor_lifetime must be 'detached' or 'non_detached', got {self.default_actor_lifetime!r}"
            )
