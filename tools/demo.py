"""`./bazelw run //:demo`: runs examples/wordcount.py, on a cluster that it starts and stops."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"
PONG = """
The other example learns to play Pong from pixels, with ten actors that each have an Atari environment:

    ./bazelw run //examples:pong -- --batches 10
"""


def main() -> int:
    # Bazel runs it in the runfiles; paths among the arguments mean the folder that the user is in.
    folder = os.environ.get("BUILD_WORKING_DIRECTORY") or None
    program = subprocess.Popen(
        [sys.executable, str((EXAMPLES / "wordcount.py").absolute()), *sys.argv[1:]], cwd=folder
    )
    while True:
        try:
            code = program.wait()
            break
        except KeyboardInterrupt:
            # The program got the same Ctrl-C, and stops its cluster before it ends.
            continue
    if code == 0:
        print(PONG)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
