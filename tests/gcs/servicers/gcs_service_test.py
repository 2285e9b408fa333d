"""One wire service out of several servicers: each method has one of them, and only one."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mono.common.our_bug import InternalError
from ray_mono.gcs.job_manager import JobManager
from ray_mono.gcs.kv import KeyValueStore
from ray_mono.gcs.servicers.gcs_service import handlers_of
from ray_mono.gcs.servicers.internal_kv import InternalKVServicer
from ray_mono.gcs.storage.memory_storage import MemoryStorage
from ray_mono.gcs.storage.write_through import WriteThrough


def kv_servicer() -> InternalKVServicer:
    writes = WriteThrough(MemoryStorage(), lambda error: None)
    unused: Any = None
    return InternalKVServicer(KeyValueStore(writes, 1000), JobManager(10), unused, unused, writes)


def test_a_method_that_no_servicer_answers_is_our_bug() -> None:
    with pytest.raises(InternalError, match="no servicer answers .*/RegisterNode"):
        handlers_of([kv_servicer()])


def test_a_method_that_two_servicers_answer_is_our_bug() -> None:
    with pytest.raises(InternalError, match="KvPut is answered by two servicers"):
        handlers_of([kv_servicer(), kv_servicer()])
