"""Seeds that the explorer found to fail, and what was wrong. Each fault has a scene of its own as well: what
happens in a seed changes with the messages of the services. They were found before busy processes were
drawn."""

from __future__ import annotations

import pytest

from tests.simulation.explorer_draws import draw_faults
from tests.simulation.scenario import run_scenario

FOUND = {
    2000399: "two heads lost their stores: a node that had missed the second was not adopted",
    2000498: "what a head asked that was gone came late, and the next one had no answer of a constructor",
    2000949: "a worker heard that its job was over, whose driver's node had ended, before its own end",
    2001132: "a driver heard so, a moment before its end",
    2002028: "that an item's actor was dead was not said, but that its call ran again",
    9000146: "a caller gave up on a call when the connection ended, which ran on: its arguments were freed",
    9000026: "a driver died with its node before a head knew where it was: its job ran for ever",
    2001223: "a copy on disk was unreadable: that its actor call has no retries was not said",
    3000815: "a head with an empty store never heard of an owner on a dead node: its values stayed in stores",
    3001099: "the same, of copies",
    3002967: "a head ended before it had heard a late node, and the next one heard no more of it: a hang",
    3003116: "no worker was asked for a task whose function's others were long, and waited for it: a hang",
    4001129: "a node told of a driver after its own end: that counted as living, and its job ran for ever",
    4002381: "while the head was away frees for a node that a store did not know yet were given up",
    4001392: "a simulated store removed a file in the process that told it of that, which was killed",
    4004079: "a head with an empty store placed an actor that a node behind a cut had begun",
    4001095: "answers of an actor were lost with the connection, and then it died: its calls ran too often",
    5000337: "that an actor's job was lost was said to its driver, a moment before its own end",
    5000682: "a restart that only a process knew which had died, and a head that was gone, was held for lost",
    5001180: "a Get waited for what was written straight to disk, and was told that it was not there",
    5001423: "a task was lost with its node, and went to another worker of that node: that cost a retry more",
    5005460: "a store copied for a drained node, whose raylet was gone by then: the copy stayed pinned",
    5003830: "an owner freed what a driver on a dead node held, a moment before the driver's own end",
    5003790: "a copy came when nobody waited for it any more: its owner never heard of it, and it stayed",
    5002468: "the same, where others were lost with it",
    6000743: "the head was away for as long as an actor waits for it, whose calls have retries",
    6000847: "a head was gone before a node had heard of others, and the next one ended their driver's job",
    6071300: "a simulated process that was killed said, as it was unwound, that its actor had moved",
    6001512: "five connections to a borrower that lived broke within 20 ms: it counted as dead",
    6012009: "a head whose first node was new did not know the job of a task that an older one ran",
    6014187: "a store did not learn of a node before a head had heard all, and gave up frees for it",
    6043351: "a call reached an actor's process after the actor had moved away, and counted as begun",
    6042728: "the same, of calls of which a later one had come back: they ran in another order",
    6091332: "a call was cancelled whose connection had broken: what it was given was freed, and kept there",
    6110997: "a simulated driver gave up a worker whose raylet had not answered: that freed what it held",
    6111571: "a simulated head's disk was slower than a node's time to join: the cluster did not start",
    6201527: "a simulated driver's node took a second to end, and its program heard of that before",
    6204523: "a simulated driver lost a worker whose node was dead, and that began what was on its way to it",
    6302629: "an actor was refused to a simulated driver whose node was dead, before its own end",
    3002105: "that a job was over was said while its driver lived, behind a cut, and was held to be dead",
}


@pytest.mark.parametrize("seed", FOUND)
def test_what_was_found_is_mended(seed: int) -> None:
    run_scenario(seed, draw_faults(seed, num_tasks=120))
