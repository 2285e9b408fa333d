"""The publisher's queues: who gets what, and what happens when nobody reads."""

from __future__ import annotations

from ray_mono.gcs.pubsub.publisher import Message, Publisher

ROWS, LOSSY, OTHER = 1, 2, 3
QUEUE_MAX = 3


def make() -> Publisher:
    return Publisher(QUEUE_MAX, [LOSSY])


def message(channel: int, number: int, key: bytes = b"key") -> Message:
    return Message(channel, key, str(number).encode())


def test_a_message_reaches_those_who_want_its_channel_and_key_in_order() -> None:
    publisher = make()
    all_keys = publisher.subscribe([(ROWS, [])])
    one_key = publisher.subscribe([(ROWS, [b"a"]), (OTHER, [])])
    assert publisher.publish(message(ROWS, 1, b"a")) == [all_keys, one_key]
    assert publisher.publish(message(ROWS, 2, b"b")) == [all_keys]
    assert publisher.publish(message(OTHER, 3, b"b")) == [one_key]
    assert publisher.publish(message(LOSSY, 4)) == []
    assert [taken.payload for taken in publisher.take(all_keys)] == [b"1", b"2"]
    assert [taken.payload for taken in publisher.take(one_key)] == [b"1", b"3"]
    assert publisher.take(one_key) == []


def test_a_message_without_a_key_is_for_every_key() -> None:
    publisher = make()
    subscriber = publisher.subscribe([(ROWS, [b"a"])])
    assert publisher.publish(message(ROWS, 1, b"")) == [subscriber]


def test_filters_of_one_channel_add_up() -> None:
    publisher = make()
    two_keys = publisher.subscribe([(ROWS, [b"a"]), (ROWS, [b"b"])])
    every_key = publisher.subscribe([(ROWS, [b"a"]), (ROWS, [])])
    assert publisher.publish(message(ROWS, 1, b"b")) == [two_keys, every_key]
    assert publisher.publish(message(ROWS, 2, b"c")) == [every_key]


def test_a_publisher_learns_how_many_it_reaches_and_how_far_behind_they_are() -> None:
    publisher = make()
    slow = publisher.subscribe([(LOSSY, [b"a"]), (ROWS, [])])
    publisher.subscribe([(LOSSY, [b"a", b"b"])])
    assert publisher.reach(LOSSY, b"a") == (2, 0) and publisher.reach(LOSSY, b"c") == (0, 0)
    publisher.publish(message(ROWS, 1))
    publisher.publish(message(LOSSY, 2, b"a"))
    assert publisher.reach(LOSSY, b"a") == (2, 2) and publisher.reach(LOSSY, b"b") == (1, 1)
    publisher.take(slow)
    assert publisher.reach(LOSSY, b"a") == (2, 1)


def test_a_full_queue_loses_the_oldest_message_that_may_be_lost() -> None:
    publisher = make()
    subscriber = publisher.subscribe([(LOSSY, []), (ROWS, [])])
    for number, channel in enumerate([ROWS, LOSSY, LOSSY, LOSSY, ROWS]):
        publisher.publish(message(channel, number))
    assert [taken.payload for taken in publisher.take(subscriber)] == [b"0", b"3", b"4"]
    assert publisher.overflowed_on(subscriber) is None
    assert publisher.subscriptions()[0].dropped == 2


def test_a_message_that_may_be_lost_is_lost_itself_where_no_other_can_be() -> None:
    publisher = make()
    subscriber = publisher.subscribe([(LOSSY, []), (ROWS, [])])
    for number in range(QUEUE_MAX):
        publisher.publish(message(ROWS, number))
    publisher.publish(message(LOSSY, 9))
    assert publisher.overflowed_on(subscriber) is None
    assert [taken.payload for taken in publisher.take(subscriber)] == [b"0", b"1", b"2"]


def test_a_subscription_that_misses_a_row_is_over() -> None:
    publisher = make()
    slow, fast = publisher.subscribe([(ROWS, [])]), publisher.subscribe([(ROWS, [])])
    for number in range(QUEUE_MAX + 1):
        publisher.publish(message(ROWS, number))
        publisher.take(fast)
    assert (publisher.overflowed_on(slow), publisher.overflowed_on(fast)) == (ROWS, None)
    assert publisher.take(slow) == []
    assert publisher.publish(message(ROWS, 9)) == [fast]


def test_who_left_gets_nothing_more() -> None:
    publisher = make()
    subscriber = publisher.subscribe([(ROWS, [])])
    publisher.unsubscribe(subscriber)
    assert publisher.publish(message(ROWS, 1)) == []
    assert publisher.subscriptions() == []


def test_what_comes_before_an_expected_subscriber_is_kept_for_the_one_who_wants_it() -> None:
    publisher = make()
    publisher.expect(LOSSY, b"a")
    publisher.expect(LOSSY, b"b")
    assert publisher.publish(message(LOSSY, 1, b"a")) == []
    assert publisher.reach(LOSSY, b"a") == (1, 1)
    other = publisher.subscribe([(LOSSY, [b"c"]), (ROWS, [b"a"])])
    subscriber = publisher.subscribe([(LOSSY, [b"a"])])
    publisher.publish(message(LOSSY, 2, b"a"))
    assert [taken.payload for taken in publisher.take(subscriber)] == [b"1", b"2"]
    assert publisher.take(other) == [] and publisher.reach(LOSSY, b"a") == (1, 0)
    # The next one who wants it gets what comes from then on.
    assert publisher.take(publisher.subscribe([(LOSSY, [b"a"])])) == []


def test_of_what_is_kept_for_an_expected_subscriber_the_oldest_goes_and_all_when_he_is_given_up() -> None:
    publisher = make()
    publisher.expect(LOSSY, b"a")
    for number in range(QUEUE_MAX + 1):
        publisher.publish(message(LOSSY, number, b"a"))
    subscriber = publisher.subscribe([(LOSSY, [])])
    assert [taken.payload for taken in publisher.take(subscriber)] == [b"1", b"2", b"3"]
    publisher.expect(LOSSY, b"a")
    publisher.publish(message(LOSSY, 9, b"a"))
    publisher.unsubscribe(subscriber)
    publisher.give_up_expected()
    assert publisher.reach(LOSSY, b"a") == (0, 0)
    assert publisher.take(publisher.subscribe([(LOSSY, [])])) == []
