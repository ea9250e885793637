"""The versions of isl and of what it computes with, for the records of runs."""

from __future__ import annotations

import importlib.metadata
import platform

__version__ = '0.1.0'


def versions() -> dict[str, str]:
  """The versions of python, isl, tensorflow, numpy and opencv, by these names.

  TensorFlow's is the installed package's, read without loading TensorFlow, which takes seconds.
  """
  # Not at the top: whoever imports isl has the version from here.
  import cv2
  import numpy as np

  return {
    'python': platform.python_version(),
    'isl': __version__,
    'tensorflow': _tensorflow_version(),
    'numpy': np.__version__,
    'opencv': cv2.__version__,
  }


def _tensorflow_version() -> str:
  try:
    return importlib.metadata.version('tensorflow')
  except importlib.metadata.PackageNotFoundError:
    # Builds under other names, tensorflow-cpu say, bring the same package.
    (name, *_) = importlib.metadata.packages_distributions()['tensorflow']
    return importlib.metadata.version(name)
