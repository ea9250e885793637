"""In silico labeling: fluorescent labels predicted from transmitted-light z-stacks.

import isl
labels = isl.Predictor('checkpoints').predict(stack)  # See isl/predictor.py.
"""

from __future__ import annotations

import typing

from isl.core.version import __version__ as __version__

if typing.TYPE_CHECKING:
  from isl.predictor import Predictor as Predictor
else:

  def __getattr__(name: str) -> object:
    """Loads Predictor when it is first asked for: that loads TensorFlow, which takes seconds."""
    if name == 'Predictor':
      from isl.predictor import Predictor

      return Predictor
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
