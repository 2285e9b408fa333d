"""The one place where exceptions become statuses: what a servicer raised, and what its caller is told."""

from __future__ import annotations

import logging
from typing import Any

from ray_mono.rpc.framing import FrameTooLargeError
from ray_mono.rpc.surface import Handler, RpcError, StatusCode

logger = logging.getLogger(__name__)


def error_of_handler(exception: BaseException, path: str) -> RpcError:
    """The error that the caller of `path` gets for what its handler raised.

    An RpcError is meant for the caller. Anything else but NotImplementedError is a fault of ours:
    its traceback goes to the log here.
    """
    if isinstance(exception, RpcError):
        return exception
    if isinstance(exception, NotImplementedError):
        return RpcError(StatusCode.UNIMPLEMENTED, f"{path} is not implemented by this server")
    if isinstance(exception, FrameTooLargeError):
        return RpcError(StatusCode.RESOURCE_EXHAUSTED, f"the answer of {path}: {exception}")
    logger.error("the handler of %s failed", path, exc_info=exception)
    return RpcError(StatusCode.INTERNAL, f"{path} failed: {type(exception).__name__}: {exception}")


def serialize_reply(handler: Handler[Any, Any], reply: Any) -> bytes:
    """A handler's answer as bytes.
    Raises TypeError for one that is not of the method's type (any message would serialize).
    """
    if type(reply) is not handler.reply_type:
        raise TypeError(f"the handler gave {type(reply).__name__} instead of {handler.reply_type.__name__}")
    payload: bytes = reply.SerializeToString()
    return payload


def unknown_method(path: str) -> RpcError:
    return RpcError(StatusCode.UNIMPLEMENTED, f"{path} is not served here")


def unparsable_request(path: str, exception: Exception) -> RpcError:
    return RpcError(StatusCode.INVALID_ARGUMENT, f"the request of {path} cannot be parsed: {exception}")
