"""A machine on which no more threads may be made, as Python shows it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from unittest import mock

from ray_mono.common.threads import NO_THREAD


@contextlib.contextmanager
def no_threads() -> Iterator[None]:
    with mock.patch.object(threading.Thread, "start", side_effect=RuntimeError(NO_THREAD)):
        yield
