"""What Dask's workers do before they label anything."""

from __future__ import annotations

import distributed

from isl import quiet


class Start(distributed.WorkerPlugin):
  """Loads what labels fields of view, quietly; in workers that come later, too."""

  name = 'isl'

  def __init__(self, module: str):
    """Takes the module to load."""
    self._module = module

  def setup(self, worker: distributed.Worker) -> None:
    """Loads it."""
    del worker
    quiet.load(self._module)


def version() -> str:
  """The worker's isl."""
  return quiet.load('isl')
