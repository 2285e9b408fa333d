"""Makes the Python code of `protobuf/*.proto`: messages, type stubs, gRPC modules, and our own `x_rpc.py`.

    python tools/generate_protos.py            into src/protobuf/, only when something has changed
    python tools/generate_protos.py --out DIR  into another folder

A checkout, the wheel's build and the Bazel rule all come through here, so they cannot differ. It needs
grpcio-tools. The generated modules import each other as `ray_mono.protobuf.x_pb2`, wherever the folder that
they lie in is.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
PLUGIN = HERE / "protoc_gen_rpc.py"
# Where the modules live for those who import them, which is also what the files call each other.
PACKAGE = "ray_mono/protobuf"
STAMP = ".generated"
INIT_TEXT = '"""Generated from protobuf/*.proto by tools/generate_protos.py. Do not edit."""\n'


class GenerationFailed(Exception):
    """protoc refused the files; it has said why on standard error."""


def digest(protos: list[Path]) -> str:
    """Changes whenever the output may: with the files, the generators, or their versions."""
    state = hashlib.sha256(f"{version('grpcio-tools')} {version('protobuf')}".encode())
    for path in [*protos, PLUGIN, HERE / "generate_protos.py"]:
        state.update(path.name.encode() + b"\0" + path.read_bytes())
    return state.hexdigest()


def run_protoc(protos: list[Path], out: Path, every_output: bool) -> None:
    """Writes the modules of the files, all of one folder, below `out`. Raises GenerationFailed."""
    with tempfile.TemporaryDirectory(prefix="protoc-") as folder:
        # protoc wants an executable, and the kernel refuses a first line with too long an interpreter.
        plugin = Path(folder, "protoc-gen-rpc")
        plugin.write_text(
            f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(PLUGIN.absolute()))} "$@"\n'
        )
        plugin.chmod(0o755)
        command = [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"-I{PACKAGE}={protos[0].parent}",
            f"--plugin=protoc-gen-rpc={plugin}",
            f"--python_out={out}",
            f"--pyi_out={out}",
            f"--grpc_python_out={out}",
            f"--rpc_out={'every_output:' if every_output else ''}{out}",
            *(f"{PACKAGE}/{proto.name}" for proto in protos),
        ]
        if subprocess.run(command).returncode != 0:
            raise GenerationFailed(f"protoc failed on {', '.join(str(proto) for proto in protos)}")


def generate(protos: list[Path], out: Path, every_output: bool = False) -> bool:
    """Brings the modules in `out` up to date; False where they were so already. Raises GenerationFailed.

    Each module is replaced as a whole, so a process that imports them meanwhile never sees half of one.
    Modules of files that are gone are removed.
    """
    stamp = out / STAMP
    current = digest(protos)
    out.mkdir(parents=True, exist_ok=True)
    if not every_output and stamp.exists() and stamp.read_text() == current:
        return False
    with tempfile.TemporaryDirectory(prefix=".new-", dir=out) as folder:
        run_protoc(protos, Path(folder), every_output)
        made = Path(folder, PACKAGE)
        (made / "__init__.py").write_text(INIT_TEXT)
        names = {path.name for path in made.iterdir()}
        for name in sorted(names):
            os.replace(made / name, out / name)
    for pattern in ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_rpc.py"):
        for old in out.glob(pattern):
            if old.name not in names:
                old.unlink()
    if not every_output:
        stamp.write_text(current)
    return True


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    root = HERE.parent
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "protos", nargs="*", type=Path, help="the .proto files, all in one folder (default: protobuf/*.proto)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=root / "src" / "protobuf",
        help="the folder for the modules (default: src/protobuf)",
    )
    parser.add_argument(
        "--every-output",
        action="store_true",
        help="for Bazel: make an x_rpc.py for files without services too, and always generate",
    )
    parsed = parser.parse_args(arguments)
    parsed.protos = sorted(parsed.protos or (root / "protobuf").glob("*.proto"))
    if not parsed.protos:
        parser.error(f"no .proto files given and none in {root / 'protobuf'}")
    return parsed


def main() -> int:
    arguments = parse_arguments()
    try:
        changed = generate(arguments.protos, arguments.out, arguments.every_output)
    except GenerationFailed as error:
        print(f"generate_protos: {error}", file=sys.stderr)
        return 1
    if not arguments.every_output:
        print(f"generate_protos: {arguments.out}: {'generated' if changed else 'up to date'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
