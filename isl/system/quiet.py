"""Loads TensorFlow without the lines that it writes to stderr meanwhile.

These are four lines that no user asked for, and no environment variable stops them.
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
  """Drops all that is written to stderr in the `with` block; exceptions pass unchanged."""
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
  """Loads a module of isl without TensorFlow's lines on stderr, and returns isl's version."""
  with quiet_stderr():
    importlib.import_module(module)
  # TensorFlow warns of deprecated functions, over several lines each.
  logging.getLogger('tensorflow').setLevel(logging.ERROR)
  version: str = sys.modules['isl'].__version__
  return version
