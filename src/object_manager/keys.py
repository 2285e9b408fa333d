"""The identifiers that the rooms of this component know, as distinct types over the plain values.

They are checked once, at the door (servicer, transfer), and compared and hashed millions of times inside: so
they are bytes and ints to the interpreter, and different things to the type checker.
"""

from __future__ import annotations

from typing import NewType

ObjectKey = NewType("ObjectKey", bytes)
NodeKey = NewType("NodeKey", bytes)
WorkerKey = NewType("WorkerKey", bytes)
# One per client connection, counted from 1.
ClientKey = NewType("ClientKey", int)

# The object manager itself, as the writer of copies that it pulls and the reader of objects that it sends.
TRANSFERS = ClientKey(0)
