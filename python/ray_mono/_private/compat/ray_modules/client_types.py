"""`ray.util.client.common`: the types of Ray Client.

There is no client yet, so nothing is an instance of one.
"""

from __future__ import annotations


class ClientActorClass: ...


class ClientActorHandle: ...


class ClientActorRef: ...


class ClientObjectRef: ...


class ClientRemoteFunc: ...


class ClientRemoteMethod: ...
