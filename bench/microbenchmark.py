"""Measures one side, line by line, on the interpreter that runs this.

    python bench/microbenchmark.py --module ray_mono|ray [--only PATTERN] [--quick] [--json FILE]
                                   [--duration-s S]

For --module ray that interpreter needs Ray and nothing of ours. bench/compare.py measures both sides in turn.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).absolute().parent.parent / "python"))

from ray_mono.microbenchmark.command import main

if __name__ == "__main__":
    sys.exit(main())
