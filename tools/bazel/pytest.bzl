"""Tests written for pytest, as Bazel targets."""

load("@rules_python//python:defs.bzl", "py_test")

def pytest_tests(srcs, smoke = None, **kwargs):
    """A py_test for each file, which pytest runs with the settings of pyproject.toml.

    Args:
      srcs: the tests' files; a target is named as its file, without the ending.
      smoke: of these the one that `make bazel-check` runs; None: it runs none here.
      **kwargs: all else that py_test takes: deps.
    """
    for src in srcs:
        py_test(
            name = src[:-len(".py")],
            # TensorFlow alone takes a busy machine a minute to load.
            size = "large",
            srcs = [src, "//tools/bazel:pytest_main.py"],
            main = "//tools/bazel:pytest_main.py",
            args = ["$(rootpath {})".format(src)],
            data = ["//:pyproject.toml"],
            tags = ["smoke"] if src == smoke else [],
            **kwargs
        )
