"""A virtualenv with the locked requirements, as a repository; its interpreter is the Python toolchain of the whole build.

pip runs with the caller's environment and home folder, so a configured package index is used. The virtualenv's path contains a
digest of the lock file and of the interpreter: when either changes, every path to the interpreter does, and so everything that was
built or tested with the old one is done again.
"""

_BUILD = """
load("@bazel_tools//tools/python:toolchain.bzl", "py_runtime_pair")

py_runtime(
    name = "runtime",
    interpreter_path = "{interpreter}",
    python_version = "PY3",
    stub_shebang = "#!/usr/bin/env python3",
)

py_runtime_pair(
    name = "runtime_pair",
    py3_runtime = ":runtime",
)

toolchain(
    name = "toolchain",
    toolchain = ":runtime_pair",
    toolchain_type = "@bazel_tools//tools/python:toolchain_type",
)
"""

_IS_USABLE = "import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != (3, 11))"

_DIGEST = """
import hashlib, os, sys
state = hashlib.sha256(open(sys.argv[1], "rb").read())
state.update(repr((sys.version, os.path.realpath(sys.executable))).encode())
print(state.hexdigest()[:12], end="")
"""

def _find_python(ctx):
    """The first Python 3.11 that can make virtualenvs; bazelw, which installs one where there is none, searches alike."""
    for candidate in [ctx.os.environ.get("RAY_MONO_PYTHON", ""), "python3.11", "/usr/bin/python3.11", "python3"]:
        path = candidate if candidate.startswith("/") else (ctx.which(candidate) if candidate else None)
        if path and ctx.execute([path, "-c", _IS_USABLE]).return_code == 0:
            return path
    return fail("no Python 3.11 with venv and ensurepip found: ./bazelw installs it, or RAY_MONO_PYTHON=/path/to/python3.11 names one")

def _run(ctx, command, timeout_s):
    result = ctx.execute(command, timeout = timeout_s, quiet = False)
    if result.return_code != 0:
        fail("{} failed:\n{}{}".format(" ".join([str(word) for word in command]), result.stdout, result.stderr))
    return result.stdout

def _python_env_impl(ctx):
    requirements = ctx.path(ctx.attr.requirements)
    python = _find_python(ctx)
    environment = ctx.path("venv-" + _run(ctx, [python, "-c", _DIGEST, requirements], 60))
    interpreter = "{}/bin/python".format(environment)
    _run(ctx, [python, "-m", "venv", environment], 300)
    _run(ctx, [
        interpreter,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
        "--requirement",
        requirements,
    ], 1800)
    ctx.file("BUILD.bazel", _BUILD.format(interpreter = interpreter))

python_env = repository_rule(
    implementation = _python_env_impl,
    attrs = {
        "requirements": attr.label(
            mandatory = True,
            allow_single_file = True,
            doc = "A lock file with hashes, as pip-compile makes it.",
        ),
    },
    environ = ["RAY_MONO_PYTHON"],
)
