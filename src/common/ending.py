"""Steps of an end: each is done, whatever becomes of the others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

logger = logging.getLogger(__name__)


def run_steps(steps: Iterable[Callable[[], object]], what: str) -> KeyboardInterrupt | None:
    """Runs all of them, in order. A failure goes to the log, as a step of `what`; a Ctrl-C ends its step and
    is returned: its time to be raised comes when everything is done."""
    interrupt = None
    for step in steps:
        try:
            step()
        except KeyboardInterrupt as error:
            interrupt = error
        except Exception:
            logger.exception("%s: a step failed", what)
    return interrupt
