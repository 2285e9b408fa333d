"""Macros for the components: each BUILD file of src/ and python/ is a few lines of them."""

load("//tools:bytecode.bzl", "bytecode")

# The folders of src/. A new component is added here, gets a BUILD file like the others', and a line in the layer table of
# tests/tidy_test.py.
COMPONENTS = [
    "common",
    "core_worker",
    "gcs",
    "object_manager",
    "raylet",
    "rpc",
]

# The folders of tests/ that have a BUILD file. Tests in any other folder there belong to tests/BUILD.bazel.
TEST_FOLDERS = [
    "bench",
    "chaos",
    "common",
    "core_worker",
    "examples",
    "gcs",
    "installed",
    "integration",
    "object_manager",
    "python",
    "python/util",
    "raylet",
    "rpc",
    "simulation",
    "stress",
    "tools",
]

_SOURCES_VISIBILITY = ["//tests:__subpackages__"]

def component(name = "lib", deps = [], data = [], exclude = [], visibility = None):
    """The library of one component: every .py file of its folder.

    Args:
      name: of the library.
      deps: libraries that it imports, in the direction that ARCHITECTURE.md names.
      data: what it only starts as processes, and never imports.
      exclude: files that belong to another target of the folder.
      visibility: of the library; nobody by default.
    """
    files = native.glob(["**/*.py"], exclude = exclude)
    bytecode(
        name = "bytecode",
        srcs = files,
    )
    native.py_library(
        name = name,
        srcs = files,
        data = data + [":bytecode"],
        visibility = visibility,
        deps = deps,
    )
    sources()

def sources():
    """The files of the folder, for the tests that read the code instead of running it."""
    native.filegroup(
        name = "sources",
        srcs = native.glob(["**"], exclude = ["**/__pycache__/**"]),
        visibility = _SOURCES_VISIBILITY,
    )

def python_main(name, module, deps, visibility = None):
    """A binary that runs main() of a module.

    The module cannot be the script itself: Python puts the script's own folder on sys.path, where the component's `types.py` or
    `queue.py` would stand in for the standard library's.

    Args:
      name: of the binary.
      module: the full name of the module.
      deps: libraries; one of them has the module.
      visibility: of the binary.
    """
    script = name + "_main.py"
    native.genrule(
        name = name + "_main",
        outs = [script],
        cmd = "printf 'import sys\\n\\nfrom {} import main\\n\\nsys.exit(main())\\n' > $@".format(module),
    )
    native.py_binary(
        name = name,
        srcs = [script],
        main = script,
        visibility = visibility,
        deps = deps,
    )

def programs(deps):
    """A binary for each .py file of the folder, and `lib`, all of them together."""
    scripts = native.glob(["*.py"])
    native.py_library(
        name = "lib",
        srcs = scripts,
        visibility = ["//:__pkg__", "//tests:__subpackages__"],
        deps = deps,
    )
    for script in scripts:
        native.py_binary(
            name = script[:-len(".py")],
            srcs = [script],
            main = script,
            deps = [":lib"],
        )
    sources()
