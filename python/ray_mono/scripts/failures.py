"""Errors that a user of the command line can do something about: shown as one message instead of a
traceback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import click


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Turns them into click's; others are bugs of ours and pass."""
    from ray_mono._private.node.bootstrap import VersionMismatchError
    from ray_mono._private.node.reaper_client import ServiceStartError
    from ray_mono._private.node.session import SessionError
    from ray_mono.common.exceptions import RayError
    from ray_mono.rpc.auth import SecretFileError, SecretNotFoundError
    from ray_mono.rpc.surface import RpcError

    try:
        yield
    except (
        ValueError,
        OSError,
        ImportError,
        RayError,
        RpcError,
        ServiceStartError,
        SessionError,
        SecretFileError,
        VersionMismatchError,
    ) as error:
        raise click.ClickException(str(error)) from error
    except SecretNotFoundError as error:
        raise click.ClickException(f"this cluster has a secret: {error.args[0]}") from error
