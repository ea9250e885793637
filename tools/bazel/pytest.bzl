"""Tests written for pytest, as Bazel targets."""

load("@rules_python//python:defs.bzl", "py_test")

def pytest_test(name, srcs, args = [], data = [], **kwargs):
    """A py_test whose one file pytest runs, with the settings of pyproject.toml.

    Args:
      name: the target's name.
      srcs: the test's file.
      args: more arguments for pytest.
      data: files that the test reads.
      **kwargs: all else that py_test takes: deps, size.
    """
    py_test(
        name = name,
        srcs = srcs + ["//tools/bazel:pytest_main.py"],
        main = "//tools/bazel:pytest_main.py",
        args = ["$(rootpath {})".format(src) for src in srcs] + args,
        data = data + ["//:pyproject.toml"],
        **kwargs
    )
