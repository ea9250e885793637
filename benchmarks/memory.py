"""Measures how much memory INFER_FULL takes for a small and for a large field of view.

    python benchmarks/memory.py

labels a field of view of 1024 x 1024 and one of 4096 x 4096 pixels, 13 depths of 16 bit and one
label, with a narrow network of random values, without panels, to an OME-Zarr; each from PNGs and
from an OME-Zarr, each in a process of its own. It prints the processes' peaks in MB, and, last, a
JSON line with the ratios.
An OME-Zarr is read window by window; PNGs can only be decoded as a whole.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

from isl.images import png_folders
from isl.programs.random_checkpoint import write_random_checkpoint
from isl.programs.random_field import write_field
from tests.support.microscope import write_ome_zarr

# Not ru_maxrss, which would begin with the parent's peak.
_PEAK = r"""if True:
  import pathlib, re
  from isl import launch
  try:
    launch.run()
  except SystemExit as e:
    assert not e.code
  status = pathlib.Path('/proc/self/status').read_text()
  print(re.search(r'VmHWM:\s*(\d+) kB', status)[1])
"""


def parse_arguments() -> argparse.Namespace:
  """Parses the command line."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--sides', default='1024,4096', help='of the fields of view, in pixels')
  parser.add_argument('--depths', type=int, default=13, help='of their z-stacks')
  parser.add_argument('--base_depth', type=int, default=8, help="the network's width")
  parser.add_argument('--prediction_format', default='OME_ZARR', help='PNG, OME_TIFF or OME_ZARR')
  parser.add_argument('--sources', default='PNG,OME_ZARR', help='what the images are')
  return parser.parse_args()


def peak_mb(arguments: Sequence[str]) -> float:
  """Runs the program and measures its peak memory, in MB (10^6 bytes)."""
  process = subprocess.run(
    [sys.executable, '-c', _PEAK, *arguments], stdout=subprocess.PIPE, text=True, check=True
  )
  found = re.search(r'(\d+)\s*$', process.stdout)
  assert found, process.stdout
  return int(found[1]) * 1024 / 1e6


def main() -> None:
  """Runs the benchmark and prints its results."""
  arguments = parse_arguments()
  sides = [int(side) for side in arguments.sides.split(',')]
  peaks: dict[str, list[float]] = {source: [] for source in arguments.sources.split(',')}
  with tempfile.TemporaryDirectory(prefix='isl-') as name:
    folder = pathlib.Path(name)
    write_random_checkpoint(
      folder / 'checkpoint',
      model='FOVEA',
      base_depth=arguments.base_depth,
      num_z_values=arguments.depths,
      target_channels=['DAPI_CONFOCAL'],
    )
    for side in sides:
      images = {'PNG': folder / f'png{side}', 'OME_ZARR': folder / f'field{side}.ome.zarr'}
      write_field(
        images['PNG'],
        rows=side,
        columns=side,
        depths=arguments.depths,
        channels=['DAPI_CONFOCAL'],
      )
      if 'OME_ZARR' in peaks:
        (field,) = png_folders.find_png_fields(images['PNG'])
        write_ome_zarr(images['OME_ZARR'], field, chunk=256)
      for source, of_source in peaks.items():
        flags = {
          'mode': 'EVAL_EVAL',
          'metric': 'INFER_FULL',
          'stitch_crop_size': 0,
          'infer_panels': '',
          'prediction_format': arguments.prediction_format,
          'restore_directory': folder / 'checkpoint',
          'dataset_eval_directory': images[source],
          'base_directory': folder / f'out{side}{source}',
          'verbosity': -1,
        }
        command = ['--read_pngs', *(f'--{flag}={value}' for flag, value in flags.items())]
        of_source.append(peak_mb(command))
        print(f'{side} x {side} from {source}: {of_source[-1]:.0f} MB', flush=True)
  print(json.dumps({source: p[-1] / p[0] for source, p in peaks.items()}))


if __name__ == '__main__':
  main()
