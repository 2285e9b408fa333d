"""Errors that are ray_mono's own fault."""

import subprocess
import sys

import pytest

from ray_mono.common.our_bug import InternalError, check, known


def test_a_value_that_is_there_is_handed_on_and_a_missing_one_is_our_bug() -> None:
    assert known(0, "the lease") == 0
    with pytest.raises(InternalError, match="the lease is not there; this is a bug of ray_mono"):
        known(None, "the lease")


def test_a_rule_that_does_not_hold_is_told_also_where_python_drops_asserts() -> None:
    program = "from ray_mono.common.our_bug import check; assert False; check(False, 'two leases')"
    done = subprocess.run([sys.executable, "-O", "-c", program], capture_output=True, text=True)
    assert "InternalError: two leases; this is a bug of ray_mono" in done.stderr
    check(True, "two leases")
