"""Test targets: one for each file, run by pytest."""

load("//tools:python.bzl", "sources")

_RUNNER = "//tools:pytest_main.py"

# How long one test may take, by the size of its target: pytest then shows where it waits before Bazel ends the whole target.
_TEST_TIMEOUT_S = {
    "small": 50,
    "medium": 120,
    "large": 600,
}

def pytest_test(name, srcs, deps = [], size = "small", whole_machine = False, **kwargs):
    """Runs pytest on one file.

    Args:
      name: of the target.
      srcs: the file.
      deps: libraries.
      size: Bazel's: small may take 1 minute, medium 5, large 15.
      whole_machine: for tests that start clusters: not beside another test on a machine of two cores.
      **kwargs: of py_test.
    """
    if len(srcs) != 1:
        fail("pytest_test {} takes one file, not {}".format(name, srcs))
    native.py_test(
        name = name,
        size = size,
        srcs = srcs + [_RUNNER],
        args = ["$(rootpath {})".format(srcs[0]), "--timeout={}".format(_TEST_TIMEOUT_S[size])] + kwargs.pop("args", []),
        data = ["//:pyproject.toml"] + kwargs.pop("data", []),
        main = _RUNNER,
        tags = (["cpu:2"] if whole_machine else []) + kwargs.pop("tags", []),
        deps = deps,
        **kwargs
    )

def pytest_directory(deps = [], size = "small", sizes = {}, exclude = [], other_users = [], **kwargs):
    """A test target for every *_test.py of the folder; a new file needs no line here.

    What else is in the folder (conftest.py, helpers) becomes the library `support`, which all tests get.

    Args:
      deps: libraries, the same for all.
      size: of those that `sizes` does not name.
      sizes: by target name: what takes longer than the others.
      exclude: test files that have a target of their own.
      other_users: names of targets that act as another user where root runs them: Bazel's sandbox has only one.
      **kwargs: of pytest_test.
    """
    files = native.glob(["**/*_test.py"], exclude = exclude)
    unknown = [name for name in list(sizes) + other_users if name + ".py" not in files]
    if unknown:
        fail("sizes or other_users name tests that are not there: {}".format(unknown))
    native.py_library(
        name = "support",
        srcs = native.glob(["**/*.py"], exclude = ["**/*_test.py"]),
        testonly = True,
        visibility = ["//tests:__subpackages__"],
        deps = deps + ([] if native.package_name() == "tests" else ["//tests:support"]),
    )
    for file in files:
        name = file[:-len(".py")]
        pytest_test(
            name = name,
            size = sizes.get(name, size),
            srcs = [file],
            deps = [":support", "//tests:every_support"],
            tags = ["no-sandbox"] if name in other_users else [],
            **kwargs
        )
    sources()
