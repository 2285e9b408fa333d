"""How the user's own log messages look: `init(logging_config=LoggingConfig(...))`.

It applies on the driver and in every worker of the job. The root logger gets one handler. Its lines tell
which job, worker, node, task and actor a message is from: as `key=value` behind the usual text, or as one
JSON object. Workers get it in the job's configuration (`configure_worker`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ray_mono.core_worker.process import current

TEXT_FORMAT = "%(asctime)s\t%(levelname)s %(filename)s:%(lineno)s -- %(message)s"
# What every record has, as logging documents it. Other attributes are the user's (`extra`) or add_context's.
STANDARD_ATTRIBUTES = frozenset(
    "args asctime created exc_info exc_text filename funcName levelname levelno lineno message module msecs"
    " msg name pathname process"
    " processName relativeCreated stack_info taskName thread threadName".split()
)
# Key in the configuration of a job.
JOB_CONFIG_KEY = "logging_config"


@dataclass
class LoggingConfig:
    """Given to `init(logging_config=...)`.

    Attributes:
        encoding: "TEXT" or "JSON".
        log_level: of the root logger, e.g. "INFO".
        additional_log_standard_attrs: attributes of logging.LogRecord to show too, e.g. ["name"].

    Raises ValueError for other values.
    """

    encoding: str = "TEXT"
    log_level: str = "INFO"
    additional_log_standard_attrs: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.encoding not in ("TEXT", "JSON"):
            raise ValueError(f"encoding must be 'TEXT' or 'JSON', got {self.encoding!r}")
        if not isinstance(logging.getLevelName(self.log_level), int):
            raise ValueError(f"log_level must be the name of a level, e.g. 'INFO', got {self.log_level!r}")
        for name in self.additional_log_standard_attrs:
            if name not in STANDARD_ATTRIBUTES:
                known = ", ".join(sorted(STANDARD_ATTRIBUTES))
                raise ValueError(f"additional_log_standard_attrs has {name!r}; accepted are {known}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> LoggingConfig:
        """Made of what to_dict gave. Names that this version does not know are left out."""
        known = {each.name for each in fields(cls)}
        return cls(**{name: value for name, value in d.items() if name in known})

    def apply(self) -> None:
        """Sets up the root logger of this process, and ray_mono's own, which then writes there too."""
        handler = logging.StreamHandler()
        handler.setFormatter(_Formatter(self))
        handler.addFilter(add_context)
        root = logging.getLogger()
        root.setLevel(self.log_level)
        for old in [each for each in root.handlers if isinstance(each.formatter, _Formatter)]:
            root.removeHandler(old)
        root.addHandler(handler)
        own = logging.getLogger("ray_mono")
        own.setLevel(self.log_level)
        own.handlers.clear()
        own.propagate = True


def configure_worker(job_config: Mapping[str, Any]) -> None:
    """Called by every worker of a job that has a LoggingConfig."""
    LoggingConfig.from_dict(job_config[JOB_CONFIG_KEY]).apply()


def add_context(record: logging.LogRecord) -> bool:
    """A filter of logging's: puts into the record which job, worker, node, task and actor it is from, as far
    as there are any."""
    core = current.core
    if core is None:
        return True
    context = core.context
    record.job_id = core.job_id.hex()
    record.worker_id = core.worker_id.hex()
    record.node_id = core.node_id.hex()
    if context.actor_id():
        record.actor_id = context.actor_id().hex()
        if context.actor_name():
            record.actor_name = context.actor_name()
    if not core.is_driver or not context.is_main:
        record.task_id = context.task_id().hex()
        record.task_name = context.task_name()
        record.task_func_name = context.function_name()
    record.timestamp_ns = int(record.created * 1e9)
    return True


class _Formatter(logging.Formatter):
    def __init__(self, config: LoggingConfig) -> None:
        super().__init__(TEXT_FORMAT)
        self._is_json = config.encoding == "JSON"
        self._shown = config.additional_log_standard_attrs

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        more = {name: getattr(record, name, None) for name in self._shown}
        more |= {name: value for name, value in vars(record).items() if name not in STANDARD_ATTRIBUTES}
        if not self._is_json:
            return " ".join([text, *(f"{name}={value}" for name, value in more.items())])
        line = {
            "asctime": record.asctime,
            "levelname": record.levelname,
            "message": record.message,
            "filename": record.filename,
            "lineno": record.lineno,
            "process": record.process,
            **({"exc_text": record.exc_text} if record.exc_text else {}),
            **more,
        }
        return json.dumps(line, default=str)
