"""The BUILD files say what the modules import, exactly, and modules import only from rooms above.

A failure prints the targets as they should stand in the BUILD file.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import itertools
import sys
from pathlib import Path

import pytest

ISL = Path(__file__).parent

# The way of the data: a module imports only from rows above it, never from its own.
ROOMS = (
  ('isl.models',),  # The package itself, __init__.py.
  ('isl.stack', 'isl.statistic', 'isl.cluster', 'isl.shard_names', 'isl.quiet'),
  ('isl.experiment',),
  ('isl.files', 'isl.folders', 'isl.spill'),
  ('isl.tiling',),
  ('isl.placement', 'isl.pyramid', 'isl.thumbnails'),
  ('isl.png_io', 'isl.image_names', 'isl.ome_tiff_io', 'isl.ome_zarr_io'),
  ('isl.image_io', 'isl.random_field'),
  ('isl.png_folders',),
  ('isl.projection', 'isl.pixel_sizes', 'isl.intensities'),
  ('isl.microscope_scenes',),
  ('isl.microscope_files',),
  ('isl.manifest',),
  ('isl.datasets',),
  ('isl.metrics', 'isl.progress', 'isl.calibration'),
  ('isl.reliability', 'isl.report'),
  ('isl.tensorcheck',),
  ('isl.losses',),
  ('isl.ops',),
  ('isl.augment',),
  ('isl.data_provider',),
  ('isl.shard_examples', 'isl.training_data', 'isl.training_fields'),
  ('isl.shard_reading', 'isl.shard_crops'),
  ('isl.shard_patches',),
  ('isl.models.plan',),
  ('isl.models.flop',),
  ('isl.models.model_util',),
  ('isl.models.training_layers',),
  ('isl.models.towers',),
  ('isl.models.concordance', 'isl.models.fovea'),
  ('isl.models.networks',),
  ('isl.channels_file',),
  ('isl.checkpoints',),
  ('isl.bare_checkpoint',),
  ('isl.random_checkpoint',),
  ('isl.watching', 'isl.best_checkpoint', 'isl.packed_variables'),
  ('isl.training_record',),
  ('isl.restoration',),
  ('isl.controller', 'isl.training_graph'),
  ('isl.visualize',),
  ('isl.mosaics', 'isl.summaries'),
  ('isl.prediction_store',),
  ('isl.prediction_files',),
  ('isl.field_prediction', 'isl.fields'),
  ('isl.field_labeling', 'isl.field_record'),
  ('isl.run_results', 'isl.calibration_fit', 'isl.predictor', 'isl.export_graph'),
  ('isl.onnx_export',),
  ('isl',),  # The package itself, which has the Predictor.
  ('isl.field_run', 'isl.dask_start'),
  ('isl.dask_fields',),
  ('isl.training_hooks', 'isl.training_summaries', 'isl.cluster_session', 'isl.first_values'),
  ('isl.training_run',),
  (
    'isl.train',
    'isl.evaluate',
    'isl.infer',
    'isl.export',
    'isl.parameter_server',
  ),  # A room a mode.
  ('isl.dry_run', 'isl.shard_writing'),
  ('isl.make_shards',),
  ('isl.flag_groups',),
  ('isl.program_flags',),
  ('isl.flag_checks',),
  ('isl.command_line',),
  ('isl.launch',),
)
ROW = {module: row for row, modules in enumerate(ROOMS) for module in modules}

# Helpers of the tests, which no room may enter.
TESTING = (
  'isl.testing',
  'isl.microscope_testing',
  'isl.browser_testing',
  'isl.distributed_testing',
  'isl.shard_testing',
)

BINARIES = ('isl.launch',)

# Attributes that buildifier puts between a target's name and its srcs.
_BEFORE_SRCS = ('size', 'testonly', 'timeout')


def rule_of(module: str) -> str:
  """The kind of target that has a module's source."""
  if module.endswith('_test'):
    return 'pytest_test'
  return 'py_binary' if module in BINARIES else 'py_library'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
  """A target of a BUILD file.

  Attributes:
    package: the folder, isl/models say.
    rule: py_library, py_binary or pytest_test.
    name: without the package.
    srcs: its files' names.
    deps: labels as written.
    others: the other attributes by name, as source code.
  """

  package: str
  rule: str
  name: str
  srcs: tuple[str, ...]
  deps: tuple[str, ...]
  others: tuple[tuple[str, str], ...] = ()

  def __str__(self) -> str:
    """The lines for the BUILD file, formatted as buildifier does."""
    heads = [f'{k} = {v}' for k, v in self.others if k in _BEFORE_SRCS]
    tails = [f'{k} = {v}' for k, v in self.others if k not in _BEFORE_SRCS]
    srcs, deps = _list('srcs', self.srcs), _list('deps', self.deps)
    attributes = [f'name = "{self.name}"', *heads, srcs, *tails, deps]
    lines = ''.join(f'    {attribute},\n' for attribute in attributes if attribute)
    return f'{self.rule}(\n{lines})\n'


def _list(name: str, values: tuple[str, ...]) -> str:
  """A list as an attribute's source code; nothing if it is empty."""
  if len(values) < 2:
    return f'{name} = ["{values[0]}"]' if values else ''
  return f'{name} = [\n' + ''.join(f'        "{value}",\n' for value in values) + '    ]'


@functools.cache
def modules() -> dict[str, Path]:
  """Every source under isl/ by its dotted name; a package's is its __init__.py."""
  paths = {}
  for path in sorted(ISL.rglob('*.py')):
    parts = ('isl', *path.relative_to(ISL).with_suffix('').parts)
    paths['.'.join(parts[:-1] if parts[-1] == '__init__' else parts)] = path
  return paths


@functools.cache
def imports(module: str) -> frozenset[str]:
  """The modules of isl that one imports, at its top or in a function.

  What follows '-m' in a list counts too: a test that runs the program.
  """
  found: set[str] = set()
  for node in ast.walk(ast.parse(modules()[module].read_text())):
    match node:
      case ast.Import():
        found.update(alias.name for alias in node.names)
      case ast.ImportFrom(module=str(parent), level=0):
        names = {f'{parent}.{alias.name}' for alias in node.names}
        found.update(name if name in modules() else parent for name in names)
      case ast.ImportFrom():
        raise AssertionError(f'{module}, line {node.lineno}: a relative import; begin with isl')
      case ast.List(elts=[*elements]):
        words = [e.value if isinstance(e, ast.Constant) else None for e in elements]
        found.update(str(b) for a, b in itertools.pairwise(words) if a == '-m')
  return frozenset(name for name in found if name.split('.')[0] == 'isl') - {module}


def package_of(module: str) -> str:
  """The folder of the BUILD file that names a module."""
  is_package = module in modules() and modules()[module].name == '__init__.py'
  return (module if is_package else module.rpartition('.')[0]).replace('.', '/')


def label(module: str, package: str) -> str:
  """A module's target, as a BUILD file in `package` names it."""
  own, name = package_of(module), module.rpartition('.')[2]
  return f':{name}' if own == package else f'//{own}:{name}'


@functools.cache
def written_targets() -> tuple[Target, ...]:
  """The Python targets in the BUILD files, but for those made of globs."""
  targets = []
  for path in sorted(ISL.rglob('BUILD')):
    for statement in ast.parse(path.read_text()).body:
      call = statement.value if isinstance(statement, ast.Expr) else None
      if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
        continue
      if call.func.id not in ('py_library', 'py_binary', 'py_test', 'pytest_test'):
        continue
      attributes = {str(k.arg): k.value for k in call.keywords}
      name, srcs, deps = (
        ast.literal_eval(attributes.pop(key, '()')) for key in ('name', 'srcs', 'deps')
      )
      targets.append(
        Target(
          package=path.parent.relative_to(ISL.parent).as_posix(),
          rule=call.func.id,
          name=name,
          srcs=tuple(srcs),
          deps=tuple(deps),
          others=tuple((k, ast.unparse(v).replace("'", '"')) for k, v in attributes.items()),
        )
      )
  return tuple(targets)


def wanted_target(module: str) -> Target:
  """The target that a module's source and imports ask for; it keeps what else is written of it."""
  package, name = package_of(module), module.rpartition('.')[2]
  rule = rule_of(module)
  others = {'size': '"small"'} if rule == 'pytest_test' else {}
  for target in written_targets():
    if (target.package, target.name) == (package, name):
      others = dict(target.others)
  if module in TESTING:
    others['testonly'] = 'True'
  labels = {label(imported, package) for imported in imports(module)}
  return Target(
    package=package,
    rule=rule,
    name=name,
    srcs=(modules()[module].name,),
    # As buildifier sorts: those of the same package first.
    deps=tuple(sorted(labels, key=lambda text: (not text.startswith(':'), text))),
    others=tuple(others.items()),
  )


@pytest.mark.parametrize('module', modules())
def test_target_is_as_the_imports_say(module: str) -> None:
  wanted = wanted_target(module)
  source = wanted.srcs[0]
  holding = [t for t in written_targets() if t.package == wanted.package and source in t.srcs]
  if holding != [wanted]:
    pytest.fail(
      f'{wanted.package}/BUILD must have this, and no other target with {source}:\n\n{wanted}',
      pytrace=False,
    )


def test_every_target_has_its_module() -> None:
  known = {(package_of(module), modules()[module].name) for module in modules()}
  sources = [(t.package, source) for t in written_targets() for source in t.srcs]
  stale = [f'{package}/{source}' for package, source in sources if (package, source) not in known]
  assert not stale, f'BUILD files name sources that are not there: {", ".join(stale)}'


@pytest.mark.parametrize('module', [m for m in modules() if rule_of(m) != 'pytest_test'])
def test_module_imports_only_from_rooms_above(module: str) -> None:
  if module in TESTING:
    return
  assert module in ROW, f'{module} has no place in ROOMS ({Path(__file__).name})'
  below = [name for name in imports(module) if ROW.get(name, len(ROOMS)) >= ROW[module]]
  assert not below, (
    f'{module} imports what is not above it in ROOMS ({Path(__file__).name}): {", ".join(below)}'
  )


def test_no_module_hides_one_of_the_standard_library() -> None:
  # `bazel run isl:launch` puts isl/ itself first on sys.path.
  names = {path.stem for path in ISL.glob('*.py')} - {'__init__'}
  assert not names & sys.stdlib_module_names
