"""Prepares Dask's workers before they label anything: isl's version, and loading TensorFlow."""

from __future__ import annotations

import distributed

from isl.system import quiet


class Start(distributed.WorkerPlugin):
  """Loads the module that labels fields of view, quietly; also in workers that come later."""

  name = 'isl'

  def __init__(self, module: str, version: str):
    """Takes the name of the module to load, and the version of isl that the worker must have."""
    self._module = module
    self._version = version

  def setup(self, worker: distributed.Worker) -> None:
    """Loads the module.

    Raises:
      RuntimeError: the worker has another version of isl; such a worker does not start.
    """
    del worker
    if quiet.load(self._module) != self._version:
      raise RuntimeError(f'isl is {version()} here, and {self._version} where the run was started')


def version() -> str:
  """The version of isl on this worker."""
  return quiet.load('isl')
