"""Compiles Python files for a Bazel rule: compile_bytecode.py SOURCE COMPILED [SOURCE COMPILED …]

The bytecode names its source by a hash of it, since in Bazel's runfiles times say nothing; Python compares
that at each import.
"""

from __future__ import annotations

import py_compile
import sys


def main(paths: list[str]) -> None:
    for source, compiled in zip(paths[::2], paths[1::2], strict=True):
        py_compile.compile(
            source, compiled, doraise=True, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH
        )


if __name__ == "__main__":
    main(sys.argv[1:])
