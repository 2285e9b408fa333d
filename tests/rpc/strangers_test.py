"""Who of those that have not shown the secret may stay, and who goes first."""

from __future__ import annotations

import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_mono.rpc.strangers import ADDRESS_MAX, STAY_S, TOTAL_MAX, Stage, Strangers, network_of

SMALL = {Stage.TOLD: 1, Stage.SILENT: 2, Stage.SHAKING: 2}


def test_the_oldest_of_the_same_address_and_stage_makes_room() -> None:
    table: Strangers[str] = Strangers(SMALL)
    assert [table.enter(name, "a", 0.0) for name in ("1", "2")] == [None, None]
    assert table.enter("other", "b", 0.0) is None
    # Who has spoken is not pushed out by those who have not.
    assert table.advance("1", Stage.SHAKING) is None
    assert [table.enter(name, "a", 0.0) for name in ("3", "4", "5")] == [None, "2", "3"]
    assert table.advance("4", Stage.SHAKING) is None and table.advance("5", Stage.SHAKING) == "1"
    assert "other" in table and "1" not in table
    # Who was refused takes no place from those who may still get in, and is missed least.
    assert table.advance("4", Stage.TOLD) is None and table.advance("5", Stage.TOLD) == "4"
    table.enter("6", "a", 0.0)
    assert table.give_up() == "5"


def test_saying_the_same_again_makes_nobody_younger() -> None:
    table: Strangers[str] = Strangers(SMALL)
    for name in ("1", "2", "3"):
        table.enter(name, "a", 0.0)
        table.advance(name, Stage.SHAKING)
        if name == "2":
            assert table.advance("1", Stage.SHAKING) is None
    assert "1" not in table and "2" in table


def test_floods_from_many_addresses_share_what_there_is_and_the_largest_gives_way() -> None:
    table: Strangers[str] = Strangers({**SMALL, Stage.SILENT: 3}, total_max=4)
    for name, host in (("1", "a"), ("2", "b"), ("3", "b"), ("4", "b")):
        assert table.enter(name, host, 0.0) is None
    assert table.enter("5", "c", 0.0) == "2" and table.enter("6", "d", 0.0) == "3"
    # All have one now: the network that has had so for longest.
    assert [table.enter(name, name, 0.0) for name in ("7", "8", "9")] == ["1", "5", "4"]
    assert len(table) == 4 and table.give_up() == "6" and len(table) == 3


def test_nobody_stays_longer_than_his_time_whatever_he_says() -> None:
    table: Strangers[str] = Strangers()
    assert table.next_end_s is None and table.give_up() is None
    for name, now_s in (("1", 0.0), ("2", 1.0), ("3", 2.0)):
        table.enter(name, "a", now_s)
    table.advance("1", Stage.SHAKING)
    assert table.next_end_s == STAY_S
    assert table.expired(STAY_S - 0.1) == [] and table.expired(STAY_S + 1.0) == ["1", "2"]
    table.leave("1")
    table.leave("3")
    assert len(table) == 0 and table.next_end_s is None


def test_a_thousand_nodes_may_come_at_once_and_one_address_may_not_take_everything() -> None:
    table: Strangers[int] = Strangers()
    assert [table.enter(number, f"10.0.{number >> 8}.{number & 255}", 0.0) for number in range(1000)] == [
        None
    ] * 1000
    assert TOTAL_MAX > 1000
    # A descriptor each.
    assert sum(ADDRESS_MAX.values()) < 512


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("2001:db8::1", "20010db800000000"),
        ("2001:db8::ffff:1", "20010db800000000"),
        ("fe80::1%eth0", "fe80000000000000"),
        ("no:address", "no:address"),
    ],
)
def test_what_is_counted_as_one_address(host: str, network: str) -> None:
    assert network_of(host) == network


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["enter", "shake", "tell", "leave", "give up", "time"]),
            st.integers(0, 30),
            st.sampled_from("abc"),
        )
    )
)
def test_the_bounds_hold_and_nobody_is_lost_whatever_comes(steps: list[tuple[str, int, str]]) -> None:
    table: Strangers[int] = Strangers(SMALL, total_max=5)
    inside: set[int] = set()
    networks: dict[int, str] = {}
    now_s = 0.0
    for step, number, host in steps:
        gone: list[int] = []
        if step == "enter" and number not in inside:
            inside.add(number)
            networks[number] = host
            gone = [victim for victim in [table.enter(number, host, now_s)] if victim is not None]
        elif step == "shake" and number in inside:
            gone = [victim for victim in [table.advance(number, Stage.SHAKING)] if victim is not None]
        elif step == "tell" and number in inside:
            gone = [victim for victim in [table.advance(number, Stage.TOLD)] if victim is not None]
        elif step == "give up":
            hosts = collections.Counter(network for one, network in networks.items() if one in inside)
            gone = [victim for victim in [table.give_up()] if victim is not None]
            assert len(gone) == bool(inside) and all(
                hosts[networks[one]] == max(hosts.values()) for one in gone
            )
        elif step == "leave":
            table.leave(number)
            inside.discard(number)
        elif step == "time":
            now_s += number / 10
            gone = table.expired(now_s)
        inside -= set(gone)
        assert len(table) == len(inside) <= 5 and all(one in table for one in inside)
    assert sorted(table.expired(now_s + STAY_S)) == sorted(inside) and len(table) == 0
