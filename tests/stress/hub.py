"""Ends the actor that all stress drivers shared, and prints as JSON what it was told."""

from __future__ import annotations

import json
import sys
from typing import Any

import ray_mono as ray

TIMEOUT_S = 30.0


def main() -> int:
    ray.init(address=sys.argv[1], log_to_driver=False)
    told: dict[str, Any] = {"by_caller": {}, "troubles": []}
    try:
        hub = ray.get_actor("hub", namespace="stress")
    except ValueError:
        hub = None  # no driver drew that scene
    if hub is not None:
        _, told["by_caller"], told["troubles"], _ = ray.get(hub.told.remote(), timeout=TIMEOUT_S)
        ray.kill(hub)
        del hub
    ray.shutdown()
    print(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
