"""Loading TensorFlow without what it says while it is loaded.

It says in four lines what no user asked for, and no environment variable stops it.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import pathlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
  """Drops what native code writes to stderr; Python's exceptions go on."""
  sys.stderr.flush()
  saved = os.dup(2)
  with pathlib.Path(os.devnull).open('wb') as nowhere:
    os.dup2(nowhere.fileno(), 2)
  try:
    yield
  finally:
    os.dup2(saved, 2)
    os.close(saved)


def load(module: str) -> str:
  """Loads a module of isl; returns isl's version."""
  with quiet_stderr():
    importlib.import_module(module)
  # It warns of functions that are old, over several lines.
  logging.getLogger('tensorflow').setLevel(logging.ERROR)
  version: str = sys.modules['isl'].__version__
  return version
