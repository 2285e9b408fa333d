"""The network between simulated processes: hosts, listeners, connections, and what goes wrong with them.

A connection is a pair of endpoints. Each direction is first in, first out; every message takes a delay drawn
from the seed, so messages of different connections overtake each other. The faults are those of real
networks:

- a process that ends closes its connections: peers get what it sent before, then the end;
- a host that loses power says nothing: peers wait, until something else (a health check) tells them, or TCP
  gives up;
- a partition delays: messages wait for heal(), new connections are not answered;
- a connection breaks: what was under way is lost, both sides notice.

Addresses: "unix:/path" belongs to a host; "ip:port" to the host with that ip; 127.0.0.1, localhost and
0.0.0.0 mean the own host.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from ray_mono.rpc.surface import NobodyListens, RpcError, StatusCode
from tests.simulation.endpoint import Endpoint, Item
from tests.simulation.loop import VirtualLoop
from tests.simulation.process import SimProcess
from tests.simulation.trace import Trace

OWN_HOST_NAMES = ("127.0.0.1", "localhost", "0.0.0.0")


@dataclass(frozen=True)
class NetworkKnobs:
    """What the seed draws for a run: delays in seconds (from, to), probabilities per message."""

    local_delay_s: tuple[float, float] = (20e-6, 100e-6)
    remote_delay_s: tuple[float, float] = (100e-6, 1e-3)
    grain_s: float = 0.0
    """Processes hear at multiples of this what has come by then: busy ones hear in batches. 0: at once."""
    slow_probability: float = 0.0
    slow_delay_s: tuple[float, float] = (0.01, 0.3)
    break_probability: float = 0.0
    """Of a connection between hosts, with each message on it."""
    retransmission_s: tuple[float, float] = (0.2, 5.0)
    """Until TCP tries again to deliver something to a host that was silent."""
    keepalive_s: float = 60.0
    """After which a connection to a host that is gone ends, if nothing is sent on it: rpc/sockets.py's
    settings.
    """
    tcp_gives_up_s: float = 900.0
    """After the first message to a host that is gone. Linux takes a quarter of an hour; services must not
    count on either.
    """


@dataclass
class Host:
    """A machine. Ports are counted up, so that none is used twice."""

    name: str
    ip: str
    is_up: bool = True
    processes: list[SimProcess] = field(default_factory=list)
    stopped_until_s: float = 0.0
    next_port: int = 20_000


@dataclass(frozen=True)
class Binding:
    """A listener's place: accept(endpoint) runs in its process for each connection."""

    process: SimProcess
    accept: Callable[[Endpoint], None]


class SimNetwork:
    """All hosts and connections of one simulation."""

    def __init__(self, loop: VirtualLoop, rng: random.Random, trace: Trace, knobs: NetworkKnobs) -> None:
        self.loop = loop
        self.knobs = knobs
        self._rng = rng
        self._trace = trace
        self._hosts: dict[str, Host] = {}
        self._bindings: dict[tuple[str, str], Binding] = {}
        self._endpoints: dict[int, Endpoint] = {}
        self._numbers = itertools.count(1)
        self._pids = itertools.count(1000)
        self._partitions: set[frozenset[str]] = set()
        self.is_over = False
        self.may_break = True
        """Whether knobs.break_probability counts now."""

    # ---- hosts and processes

    def add_host(self, name: str) -> Host:
        """A new machine, or the one of that name, back after a crash."""
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = Host(name, ip=f"10.0.0.{len(self._hosts) + 1}")
        elif not host.is_up:
            self._answer_retransmissions(name)
        host.is_up = True
        return host

    def _answer_retransmissions(self, host_name: str) -> None:
        """A host that is back knows nothing of connections on which peers still try to deliver something."""
        for endpoint in list(self._endpoints.values()):
            peer = endpoint.peer
            if endpoint.has_sent_into_silence and peer is not None and peer.process.host_name == host_name:
                when_s = self.loop.time() + self._rng.uniform(*self.knobs.retransmission_s)
                self._lost(endpoint, when_s, "connection reset by the peer")

    def start_process(self, host_name: str, name: str) -> SimProcess:
        host = self._hosts[host_name]
        process = SimProcess(self.loop, host_name, name, next(self._pids))
        process.stop(host.stopped_until_s)
        host.processes.append(process)
        process.on_death(lambda reason: self._process_died(process))
        return process

    def stop_host(self, name: str, until_s: float) -> None:
        """Every process there gets SIGSTOP, and SIGCONT at that time. The machine itself goes on."""
        host = self._hosts[name]
        host.stopped_until_s = max(host.stopped_until_s, until_s)
        for process in host.processes:
            process.stop(until_s)

    def stopped_until_s(self, host_name: str) -> float:
        return self._hosts[host_name].stopped_until_s

    def crash_host(self, name: str) -> None:
        """Power loss: everything on the host stops and nobody is told."""
        host = self._hosts[name]
        host.is_up = False
        self._trace.record(self.loop.time(), "crash", name, "", "host")
        for process in host.processes:
            process.kill("the host lost power")
        host.processes.clear()

    def _keepalive_failed(self, endpoint: Endpoint) -> None:
        # Probes are for idle connections: TCP sends none while it still tries to deliver something.
        if not endpoint.has_sent_into_silence:
            endpoint.end("no answer from the host: keepalive gave up")

    def _process_died(self, process: SimProcess) -> None:
        """The kernel's part: the dead process's listeners and connections close (unless the host went with
        it).
        """
        self._trace.record(self.loop.time(), "died", process.name, "", "process")
        for key in [key for key, binding in self._bindings.items() if binding.process is process]:
            del self._bindings[key]
        for endpoint in [endpoint for endpoint in self._endpoints.values() if endpoint.process is process]:
            if self._hosts[process.host_name].is_up:
                endpoint.close()
            else:
                endpoint.is_open = False
                self.forget(endpoint)
                peer = endpoint.peer
                if peer is not None:
                    peer.take_held()  # what a partition held up was in the host's memory
                if peer is not None and peer.is_open:
                    context = peer.process.context.copy()
                    delay_s = self.knobs.keepalive_s
                    self.loop.call_later(delay_s, self._keepalive_failed, peer, context=context)

    # ---- addresses

    def host_names(self) -> list[str]:
        """In the order in which they were added."""
        return list(self._hosts)

    def ip_of(self, host_name: str) -> str:
        return self._hosts[host_name].ip

    def bind(self, process: SimProcess, address: str, accept: Callable[[Endpoint], None]) -> str:
        """Listens; returns the address with the real port. Raises OSError (EADDRINUSE) as bind does."""
        if not address.startswith("unix:"):
            ip, _, port = address.rpartition(":")
            host = self._hosts[process.host_name]
            if port == "0":
                host.next_port += 1
                port = str(host.next_port)
            address = f"{ip}:{port}"
        key = self._key(process.host_name, address)
        if key[0] != process.host_name:
            raise OSError(errno.EADDRNOTAVAIL, f"{address} is not an address of {process.host_name}")
        if key in self._bindings:
            raise OSError(errno.EADDRINUSE, f"{address} is in use on {process.host_name}")
        self._bindings[key] = Binding(process, accept)
        return address

    def unbind(self, process: SimProcess, address: str) -> None:
        self._bindings.pop(self._key(process.host_name, address), None)

    def _key(self, from_host: str, address: str) -> tuple[str, str]:
        if address.startswith("unix:"):
            return from_host, address
        ip, _, port = address.rpartition(":")
        if ip in OWN_HOST_NAMES:
            return from_host, port
        for host in self._hosts.values():
            if ip == host.ip:
                return host.name, port
        return "", port

    # ---- connections

    async def connect(self, process: SimProcess, address: str, timeout_s: float) -> Endpoint:
        """The client's endpoint. Raises RpcError UNAVAILABLE when the connection is refused, or not answered
        within timeout_s.
        """
        key = self._key(process.host_name, address)
        answer: asyncio.Future[Endpoint | str] = self.loop.create_future()
        self._trace.record(self.loop.time(), "connect", process.name, address, "")
        if self.reaches(process.host_name, key[0]):
            delay_s = self._draw_delay_s(process.host_name, key[0])
            self.loop.call_later(delay_s, self._arrive, process, key, answer, context=contextvars.Context())
        try:
            async with asyncio.timeout(timeout_s):
                outcome = await answer
        except TimeoutError:
            raise RpcError(StatusCode.UNAVAILABLE, f"{address}: no answer within {timeout_s:g} s") from None
        if isinstance(outcome, str):
            raise NobodyListens(f"{address}: {outcome}")
        return outcome

    def _arrive(
        self, process: SimProcess, key: tuple[str, str], answer: asyncio.Future[Endpoint | str]
    ) -> None:
        """A connection attempt reaches the other host. The answer takes its time too."""
        if answer.done() or not self.reaches(process.host_name, key[0]):
            return
        delay_s = self._draw_delay_s(key[0], process.host_name)
        binding = self._bindings.get(key)
        if binding is None:
            self.loop.call_later(
                delay_s, self._answer, answer, "connection refused", context=process.context.copy()
            )
            return
        number = next(self._numbers)
        client, server = Endpoint(self, process, number), Endpoint(self, binding.process, -number)
        client.peer, server.peer = server, client
        self._endpoints[client.number], self._endpoints[server.number] = client, server
        client.arrival_s(self.loop.time() + delay_s)
        if binding.process.is_stopped:
            # The machine accepts; the process sees it later.
            context = binding.process.context.copy()
            self.loop.call_soon(binding.accept, server, context=context)
        else:
            binding.process.run(binding.accept, server)
        self.loop.call_later(delay_s, self._answer, answer, client, context=contextvars.Context())

    def _answer(self, answer: asyncio.Future[Endpoint | str], outcome: Endpoint | str) -> None:
        if not answer.done() and (isinstance(outcome, str) or outcome.process.is_alive):
            answer.set_result(outcome)
        elif isinstance(outcome, Endpoint):
            outcome.close()

    def transmit(self, sender: Endpoint, receiver: Endpoint, item: Item) -> None:
        """Puts an item on its way, or lets the network lose it."""
        if self.is_over:
            return
        self.record("send", sender, receiver, item)
        from_host, to_host = sender.process.host_name, receiver.process.host_name
        if frozenset((from_host, to_host)) in self._partitions:
            receiver.hold(item)
        elif not self._hosts[to_host].is_up:
            sender.has_sent_into_silence = True
            when_s = self.loop.time() + self.knobs.tcp_gives_up_s
            self._lost(sender, when_s, "no answer from the host: TCP gave up")
        elif not receiver.is_open:
            # Behind what the peer had sent, which is read to its end.
            when_s = sender.arrival_s(self.loop.time() + self._draw_delay_s(to_host, from_host))
            self._lost(sender, when_s, "connection reset by the peer")
        elif from_host != to_host and self.may_break and self._rng.random() < self.knobs.break_probability:
            self.break_connection(sender)
        else:
            self._schedule(receiver, item, from_host)

    def _schedule(self, receiver: Endpoint, item: Item, from_host: str) -> None:
        delay_s = self._draw_delay_s(from_host, receiver.process.host_name)
        when_s = self._heard_s(receiver.arrival_s(self.loop.time() + delay_s))
        self.loop.call_at(when_s, receiver.deliver, item, context=receiver.process.context.copy())

    def _heard_s(self, arrival_s: float) -> float:
        grain_s = self.knobs.grain_s
        return math.ceil(arrival_s / grain_s) * grain_s if grain_s else arrival_s

    def _lost(self, sender: Endpoint, when_s: float, reason: str) -> None:
        if sender.is_open:
            self.loop.call_at(
                self._heard_s(when_s), sender.end, reason, context=sender.process.context.copy()
            )

    def break_connection(self, endpoint: Endpoint) -> None:
        """Loses what is under way in both directions; both sides notice, each after a delay of its own."""
        for side in (endpoint, endpoint.peer):
            if side is None or not side.is_open:
                continue
            self._trace.record(self.loop.time(), "break", side.name, "", "")
            side.is_cut = True
            delay_s = self._draw_delay_s("", side.process.host_name)
            self.loop.call_later(delay_s, side.end, "connection reset", context=side.process.context.copy())

    def partition(self, host: str, other: str) -> None:
        """Nothing passes between two hosts until heal(); what is under way arrives."""
        self._partitions.add(frozenset((host, other)))

    def heal(self) -> None:
        """Ends all partitions; what waited for it goes on its way in its order."""
        self._partitions.clear()
        for endpoint in list(self._endpoints.values()):
            for item in endpoint.take_held():
                if endpoint.peer is not None:
                    self._schedule(endpoint, item, endpoint.peer.process.host_name)

    def connections(self) -> list[Endpoint]:
        """The client side of every open connection, oldest first."""
        return [endpoint for number, endpoint in self._endpoints.items() if number > 0]

    def connections_between_hosts(self) -> list[Endpoint]:
        """Those that can break: what a fault chooses from."""
        return [
            endpoint
            for endpoint in self.connections()
            if endpoint.peer is not None and endpoint.peer.process.host_name != endpoint.process.host_name
        ]

    def forget(self, endpoint: Endpoint) -> None:
        self._endpoints.pop(endpoint.number, None)

    # ---- small things

    def reaches(self, from_host: str, to_host: str) -> bool:
        """Whether a first packet gets there: hosts that do not exist do not answer."""
        up = to_host in self._hosts and self._hosts[to_host].is_up
        return up and not self.is_over and frozenset((from_host, to_host)) not in self._partitions

    def _draw_delay_s(self, from_host: str, to_host: str) -> float:
        knobs = self.knobs
        if knobs.slow_probability and self._rng.random() < knobs.slow_probability:
            return self._rng.uniform(*knobs.slow_delay_s)
        return self._rng.uniform(*(knobs.local_delay_s if from_host == to_host else knobs.remote_delay_s))

    def record(self, event: str, sender: Endpoint, receiver: Endpoint, item: Item) -> None:
        if isinstance(item, str):
            self._trace.record(self.loop.time(), event, sender.name, receiver.name, f"END {item}")
        else:
            what = f"{item.kind} {item.path} call {item.call_id} code {item.code}"
            self._trace.record(self.loop.time(), event, sender.name, receiver.name, what, item.payload)
