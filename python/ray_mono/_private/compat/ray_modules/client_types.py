"""`ray.util.client.common`: the types of Ray Client. There are no clients yet, so nothing is an instance of them."""

from __future__ import annotations


class ClientActorClass: ...


class ClientActorHandle: ...


class ClientActorRef: ...


class ClientObjectRef: ...


class ClientRemoteFunc: ...


class ClientRemoteMethod: ...
