"""How a Redis is named: Ray's addresses, and the URLs of Redis's clients.

    host:port                                       one server; or any of a Sentinel or of a Redis Cluster
    host:port,host:port                             several of them: the first that answers is asked
    unix:/path                                      a socket
    redis://[user[:password]@]host:port[,…][/db]    the same with a user, a password (%2F for /), a database
    rediss://…[?ssl_ca_certs=FILE&…]                the same over TLS
    redis+sentinel://…/service[/db]                 Sentinels, which say where the master of that name is
    rediss+sentinel://…
    …?replicas=2                                    how many must have a change before it is answered

What the servers are they say themselves, so a scheme is needed for none of them but for the name of a service
(where Sentinels watch several), a user, TLS and options.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

SCHEMES = ("redis", "rediss", "redis+sentinel", "rediss+sentinel", "unix")
ACCEPTED = (
    "host:port, host:port,host:port, unix:/path, redis://[user:password@]host:port[/db], rediss://… (TLS), "
    "redis+sentinel://host:port/service or rediss+sentinel://…"
)
QUOTED = "A user and a password need a scheme, and special characters in them are written as in %2F for /"
FILE_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
OPTIONS = (*FILE_OPTIONS, "ssl_check_hostname", "replicas", "sentinel_username", "sentinel_password")


@dataclass(frozen=True)
class RedisAddress:
    """One Redis, whatever it consists of."""

    servers: tuple[tuple[str, int], ...] = ()
    """Host and port of those that may be asked; empty where there is a socket."""
    socket_path: str = ""
    username: str = ""
    password: str = field(default="", repr=False)
    """Empty for none."""
    database: int = 0
    has_tls: bool = False
    tls_files: tuple[tuple[str, str], ...] = ()
    """By redis-py's names: ssl_ca_certs (default: the system's), ssl_certfile, ssl_keyfile."""
    checks_hostname: bool = True
    service: str = ""
    """The master's name at its Sentinels; empty where they watch only one."""
    replicas: int | None = None
    """How many must have a change before it is answered; None: 1 with Sentinel or a Redis Cluster, else 0."""
    sentinel_username: str = ""
    sentinel_password: str = field(default="", repr=False)

    def __str__(self) -> str:
        """For people, without what is secret."""
        if self.socket_path:
            return f"unix:{self.socket_path}"
        return ",".join(f"{host}:{port}" for host, port in self.servers)


def parse_redis_address(text: str, username: str = "", password: str = "") -> RedisAddress:
    """username, password: where the address has none. Raises ValueError, which repeats no password."""
    if text.startswith("unix:") and not text.startswith("unix://"):
        return RedisAddress(socket_path=text.removeprefix("unix:"), username=username, password=password)
    shown = _shown(text)
    if "://" not in text:
        return RedisAddress(servers=_servers(text, shown), username=username, password=password)
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise ValueError(f"the Redis address {shown!r} cannot be read: {error}. {QUOTED}") from error
    userinfo, _, hosts = parts.netloc.rpartition("@")
    user, _, own_password = userinfo.partition(":")
    if parts.scheme not in SCHEMES:
        raise ValueError(f"the Redis address {shown!r} has an unknown scheme; accepted are {ACCEPTED}")
    address = RedisAddress(
        username=unquote(user) or username,
        password=unquote(own_password) or password,
        has_tls=parts.scheme.startswith("rediss"),
    )
    if parts.scheme == "unix":
        return dataclasses.replace(address, socket_path=unquote(parts.path), **_options(parts.query))
    servers = _servers(hosts, shown)
    path = [unquote(piece) for piece in parts.path.split("/") if piece]
    service = path.pop(0) if parts.scheme.endswith("+sentinel") and path else ""
    if len(path) > 1 or not all(piece.isdecimal() for piece in path):
        raise ValueError(
            f"the Redis address {shown!r} must end with the number of a database; {ACCEPTED}{_hint(shown)}"
        )
    return dataclasses.replace(
        address,
        servers=servers,
        database=int(path[0]) if path else 0,
        service=service,
        **_options(parts.query),
    )


def _shown(text: str) -> str:
    """Without what may be secret, also where it was not quoted as it should be."""
    scheme, separator, rest = text.rpartition("://")
    plain, _, query = rest.partition("?")
    if "@" in query:
        return f"{scheme}{separator}…"
    _, at, hosts = plain.rpartition("@")
    return f"{scheme}{separator}{'…@' if at else ''}{hosts}"


def _hint(shown: str) -> str:
    return f". {QUOTED}" if "…" in shown else ""


def _servers(hosts: str, shown: str) -> tuple[tuple[str, int], ...]:
    servers = []
    for one in hosts.split(","):
        host, separator, port = one.strip().rpartition(":")
        is_host = host and not set(host) & set("@/")
        if not separator or not is_host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(f"the Redis address must be {ACCEPTED}; got {shown!r}{_hint(shown)}")
        servers.append((host.removeprefix("[").removesuffix("]"), int(port)))
    return tuple(servers)


def _options(query: str) -> dict[str, Any]:
    given = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(given.keys() - set(OPTIONS))
    if unknown:
        raise ValueError(
            f"the Redis address has unknown options {', '.join(unknown)}; accepted are {', '.join(OPTIONS)}"
        )
    hostname = given.get("ssl_check_hostname", "true").lower()
    if hostname not in ("true", "false"):
        raise ValueError(f"ssl_check_hostname must be true or false, got {hostname!r}")
    for name in FILE_OPTIONS:
        if name in given and not os.access(given[name], os.R_OK):
            raise ValueError(
                f"{name} in a Redis address must be a file that can be read, got {given[name]!r}"
            )
    replicas = given.get("replicas")
    if replicas is not None and not replicas.isdecimal():
        raise ValueError(f"replicas in a Redis address must be 0 or more, got {replicas!r}")
    return {
        "replicas": None if replicas is None else int(replicas),
        "tls_files": tuple((name, given[name]) for name in FILE_OPTIONS if name in given),
        "checks_hostname": hostname == "true",
        "sentinel_username": given.get("sentinel_username", ""),
        "sentinel_password": given.get("sentinel_password", ""),
    }
