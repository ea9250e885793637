"""No module of isl hides another's: `bazel run` puts isl/ first on sys.path."""

from __future__ import annotations

import importlib.machinery
import pathlib
import pkgutil
import sys

import isl

_FOLDER = pathlib.Path(isl.__file__).parent


def test_no_module_hides_one_of_the_standard_library_or_of_an_installed_package():
  names = {module.name for module in pkgutil.iter_modules([str(_FOLDER)])}
  assert names >= {'core', 'launch', 'training'}
  assert not names & set(sys.stdlib_module_names)
  elsewhere = [path for path in sys.path if pathlib.Path(path or '.').resolve() != _FOLDER]
  # A folder without Python files is found as a namespace package, without a loader.
  hidden = {
    name
    for name in names
    if (spec := importlib.machinery.PathFinder.find_spec(name, elsewhere)) and spec.loader
  }
  assert not hidden
