"""Copies of an item in several stores, one of each attempt of its generator, and what is inside of them. Any
copy may be the one that is read."""

from __future__ import annotations

from ray_mono.protobuf import common_pb2, core_worker_pb2
from tests.core_worker.called_generator import OTHER_NODE, Generator, part
from tests.core_worker.scene import ELSEWHERE, OWNER, Reply, Served, address_of


def part_in_store(number: int, node_id: bytes, *inside: common_pb2.ObjectReference) -> Reply:
    message = core_worker_pb2.StreamedItem(in_plasma=True, node_id=node_id, size_bytes=10**6, nested=inside)
    return Reply(first_item=number, items=[message])


def borrowed(number: int) -> common_pb2.ObjectReference:
    return common_pb2.ObjectReference(object_id=b"%028d" % number, owner=OWNER)


def ask_for_end(generator: Generator, reference: common_pb2.ObjectReference, number: int) -> Served:
    """The owner of what is inside the item asks whether this process has it still."""
    return generator.scene.ask(
        "WaitForRefRemoved",
        core_worker_pb2.WaitForRefRemovedRequest(
            object_id=reference.object_id, owner=reference.owner, contained_in=generator.item_id(number)
        ),
    )


def test_what_each_copy_of_an_item_has_inside_lives_with_the_item() -> None:
    generator = Generator(retry_exceptions=True)
    generator.push.part(part_in_store(1, ELSEWHERE, borrowed(1)))
    asked = [ask_for_end(generator, borrowed(1), 1)]
    generator.fail(KeyError("no"))
    generator.push.part(part_in_store(1, OTHER_NODE, borrowed(2)))
    asked.append(ask_for_end(generator, borrowed(2), 1))
    # Of the copy that is read nothing has to be registered.
    generator.scene.borrow(b"%028d" % 2)
    assert not generator.scene.wire.all("AddBorrower")
    taken = next(generator.made)
    del generator.made
    assert [each.replies for each in asked] == [[], []]
    del taken
    generator.scene.turn()
    assert [each.replies for each in asked] == [[common_pb2.Empty()]] * 2


def test_what_a_copy_has_inside_is_kept_also_where_its_owner_asks_before_the_copy_is_named() -> None:
    generator = Generator(retry_exceptions=True)
    generator.push.part(part_in_store(1, ELSEWHERE, borrowed(1)))
    generator.fail(KeyError("no"))
    asked = ask_for_end(generator, borrowed(2), 1)
    assert asked.replies == []
    generator.push.part(part_in_store(1, OTHER_NODE, borrowed(2)))
    assert asked.replies == []
    next(generator.made)
    generator.scene.turn()
    assert asked.replies == [common_pb2.Empty()]


def test_what_a_copy_has_inside_lives_for_another_process_that_has_the_item() -> None:
    generator = Generator(retry_exceptions=True)
    generator.push.part(part_in_store(1, ELSEWHERE, borrowed(1)))
    taken = next(generator.made)
    lent = core_worker_pb2.AddBorrowerRequest(object_id=taken.binary(), borrower=address_of(b"reader"))
    generator.scene.ask("AddBorrower", lent)
    # Nobody takes any more. The next attempt may not know of it yet.
    del taken, generator.made
    generator.fail(KeyError("no"))
    asked = ask_for_end(generator, borrowed(2), 1)
    generator.push.part(part_in_store(1, OTHER_NODE, borrowed(2)))
    status = core_worker_pb2.GetObjectStatusRequest(object_id=generator.item_id(1))
    where = generator.scene.ask("GetObjectStatus", status).answer
    assert list(where.location_node_ids) == [ELSEWHERE, OTHER_NODE] and asked.replies == []
    generator.scene.wire.last("WaitForRefRemoved", "unix:reader").answer(common_pb2.Empty())
    assert asked.replies == [common_pb2.Empty()]


def test_our_own_inside_of_a_copy_is_kept() -> None:
    generator = Generator(retry_exceptions=True)
    generator.push.part(part_in_store(1, ELSEWHERE))
    generator.fail(KeyError("no"))
    before = generator.references
    mine = generator.scene.core.put(1)
    inside = common_pb2.ObjectReference(object_id=mine.binary(), owner=generator.scene.address)
    generator.push.part(part_in_store(1, OTHER_NODE, inside))
    del mine
    assert generator.references == before + 1
    next(generator.made)
    assert generator.references == before - 1


def test_what_another_attempt_has_inside_of_an_item_that_is_inline_here_is_let_go() -> None:
    generator = Generator(retry_exceptions=True)
    generator.push.part(part(1, "one"))
    generator.fail(KeyError("no"))
    before = generator.references
    assert ask_for_end(generator, borrowed(2), 1).replies == [common_pb2.Empty()]
    generator.push.part(part_in_store(1, OTHER_NODE, borrowed(2)))
    assert generator.references == before
    assert generator.freed == [(generator.item_id(1), [OTHER_NODE])]
