"""What Dask's workers do before they label anything."""

from __future__ import annotations

import distributed

from isl.system import quiet


class Start(distributed.WorkerPlugin):
  """Loads what labels fields of view, quietly; in workers that come later, too."""

  name = 'isl'

  def __init__(self, module: str, version: str):
    """Takes the module to load, and the version of isl that it must be of."""
    self._module = module
    self._version = version

  def setup(self, worker: distributed.Worker) -> None:
    """Loads it.

    Raises:
      RuntimeError: it is of another version, with which no worker starts.
    """
    del worker
    if quiet.load(self._module) != self._version:
      raise RuntimeError(f'isl is {version()} here, and {self._version} where the run was started')


def version() -> str:
  """The worker's isl."""
  return quiet.load('isl')
