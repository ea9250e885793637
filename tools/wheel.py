"""Builds the wheel without tests, which stay in the repository."""

from __future__ import annotations

from setuptools.command.build_py import build_py


class BuildWithoutTests(build_py):
  """The build step of setuptools that copies modules, but leaves out `*_test.py`."""

  def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
    """Lists a package's modules as (package, module, file), without tests."""
    modules = super().find_package_modules(package, package_dir)
    return [m for m in modules if not m[1].endswith('_test')]
