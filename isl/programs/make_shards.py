r"""Writes fields of view into TFRecord shards, for trainings on more than fits into memory.

    python -m isl.programs.make_shards --dataset_directory A,B \
      --output 'shards/plate-%05d' --num_shards 64

isl/data/shard_writing.py says how, and isl/data/shard_examples.py what is in them. Train from them
with

    isl-launch --mode TRAIN --dataset_pattern 'shards/plate-%05d' --dataset_num_shards 64 ...
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
from collections.abc import Callable, Sequence

from absl import flags, logging

from isl.core import shard_names
from isl.core.channels import MAXPROJECT
from isl.images import finding
from isl.images.fields_of_view import FieldFiles, parts_of
from isl.models.networks import NETWORKS
from isl.system import quiet

# In pixels: as much as the network with the largest margin needs.
_OVERLAP = max(spec.geometry.margin for spec in NETWORKS.values())


def make_parser() -> argparse.ArgumentParser:
  """Makes the parser of the command line."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument(
    '--dataset_directory',
    required=True,
    type=_names,
    help='folders, files and manifests; a comma list',
  )
  parser.add_argument('--output', required=True, help="the shards' names, with %%05d for a number")
  parser.add_argument('--num_shards', required=True, type=_from(1), help='how many shards to write')
  parser.add_argument(
    '--tile_size', type=_from(1), help='write tiles of about this side in pixels; else fields whole'
  )
  parser.add_argument(
    '--tile_overlap',
    type=_from(0),
    default=_OVERLAP,
    help="pixels of a tile's neighbours around it: what a network's patch reads beyond its output;"
    ' otherwise %(default)s, which suffices for all networks',
  )
  for kind in ('input', 'target'):
    parser.add_argument(
      f'--{kind}_channels',
      type=_names,
      help=f'the {kind}s to write, a comma list; otherwise all images',
    )
  parser.add_argument(
    '--png_compression',
    type=_from(0),
    default=0,
    choices=range(10),
    help='from 0, the quickest to read, to 9',
  )
  parser.add_argument('--gzip', action='store_true', help='compress the shards, too')
  parser.add_argument('--overwrite', action='store_true', help='replace older shards of that name')
  return parser


def _names(text: str) -> list[str]:
  names = text.split(',')
  if not all(names):
    raise argparse.ArgumentTypeError(f'must be names between commas, got {text!r}')
  return names


def _from(least: int) -> Callable[[str], int]:
  def number(text: str) -> int:
    value = int(text)
    if value < least:
      raise argparse.ArgumentTypeError(f'must be at least {least}, got {value}')
    return value

  return number


def chosen_fields(arguments: argparse.Namespace) -> list[FieldFiles]:
  """Finds the fields of view, with only the images that are to be written.

  Raises:
    ValueError: a field of view cannot be read, or lacks an input channel; or none has a label that
      is asked for.
    OSError: a folder is missing or cannot be read.
  """
  found = finding.find_all(pathlib.Path(_home(name)) for name in arguments.dataset_directory)
  inputs, targets = arguments.input_channels, arguments.target_channels
  if inputs is None and targets is None:
    return found
  recorded = {key.channel for field in found for key in field.sources if key.z == MAXPROJECT}
  for channel in targets or ():
    if not recorded.intersection(parts_of(channel)):
      raise ValueError(
        f'no field of view has an image of {channel}, which --target_channels names; the labels'
        f' there are: {", ".join(sorted(recorded)) or "none"}'
      )
  return [
    field.select(
      _channels(field, is_label=False) if inputs is None else inputs,
      _channels(field, is_label=True) if targets is None else targets,
    )
    for field in found
  ]


def _channels(field: FieldFiles, *, is_label: bool) -> list[str]:
  """The channels of a field of view that are labels, or those that are not, sorted."""
  return sorted({key.channel for key in field.sources if (key.z == MAXPROJECT) == is_label})


def _home(path: str) -> str:
  """Replaces a ~ at the beginning of a path by the home directory."""
  return os.path.expanduser(path)  # noqa: PTH111, of a pattern.


def main() -> None:
  """Runs the program: writes shards as the command line says."""
  arguments = make_parser().parse_args()
  with quiet.quiet_stderr():
    # Not at the top: it loads TensorFlow, for which --help should not have to wait.
    from isl.data import shard_writing
  # Otherwise, absl's log begins with a line about flags that were not parsed.
  flags.FLAGS.mark_as_parsed()
  logging.use_absl_handler()
  logging.set_verbosity(logging.INFO)
  cut = shard_writing.Cut(
    tile_size=arguments.tile_size,
    overlap=arguments.tile_overlap,
    compression=arguments.png_compression,
    gzip=arguments.gzip,
  )
  try:
    paths = shard_writing.write_shards(
      chosen_fields(arguments),
      _home(arguments.output),
      arguments.num_shards,
      cut,
      overwrite=arguments.overwrite,
    )
  except (OSError, ValueError) as e:
    print(f'make_shards: {" ".join(str(e).split())}', file=sys.stderr)
    sys.exit(1)
  except KeyboardInterrupt:
    print('make_shards: stopped', file=sys.stderr)
    sys.exit(130)
  _print_summary(paths)


def _print_summary(paths: Sequence[pathlib.Path]) -> None:
  in_bytes = sum(path.stat().st_size for path in paths)
  num_held_out = sum(map(shard_names.is_for_evaluation, range(len(paths))))
  print(
    f'{len(paths)} shards ({num_held_out} for evaluation), {in_bytes / 1e6:.1f} MB:'
    f' {paths[0]} .. {paths[-1]}'
  )


if __name__ == '__main__':
  main()
