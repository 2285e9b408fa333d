"""The accelerators of this machine: NVIDIA's GPUs, as their driver tells them."""

from __future__ import annotations

import os
import re
from pathlib import Path

NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")
_MODEL = re.compile(r"^Model:\s*(.+?)\s*$", re.MULTILINE)
# Of "Tesla V100-SXM2-16GB" and "NVIDIA RTX PRO 6000 Blackwell": V100, and RTX PRO 6000.
_CAPITALS = re.compile(r"\w+\s+((?:[A-Z]+\s+)*[A-Z0-9]*\d[A-Z0-9]*)")


def visible_gpus() -> int:
    """NVIDIA GPUs on the machine, or those that CUDA_VISIBLE_DEVICES leaves."""
    try:
        count = len(os.listdir(NVIDIA_GPUS))
    except OSError:
        return 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return count
    names = [name for name in visible.split(",") if name.strip() and name.strip() not in ("-1", "NoDevFiles")]
    return min(count, len(names))


def gpu_type() -> str:
    """The kind of the first GPU, by Ray's name, e.g. "A100"; empty where there is none or it is not told."""
    for path in sorted(NVIDIA_GPUS.glob("*/information")):
        try:
            told = _MODEL.search(path.read_text())
        except OSError:
            continue
        if told is not None:
            return _type_of(told[1])
    return ""


def _type_of(model: str) -> str:
    """Ray's rule: the capitals and digits behind the maker's name, and for others the whole name."""
    capitals = _CAPITALS.match(model)
    if capitals is not None and len(capitals[1]) > 1:
        return capitals[1].replace(" ", "-")
    return re.sub(r"^NVIDIA\s+", "", model).replace(" ", "-")
