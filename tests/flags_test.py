"""No flag is dead: for each that the program has, a test is named here that observes its effect.

That test must be in the suite, and have the flag in its own source, its parametrization, or in what
it uses: fixtures, functions and constants of its module, and helpers of the tests.
"""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest
from absl import flags

from isl import program_flags

ISL = Path(__file__).parent

# A flag, and the test that fails if it has no effect: module::test or module::Class::test.
_OBSERVED_BY = {
  # What to run.
  'mode': 'train_infer_test::test_every_mode_and_metric',
  'metric': 'train_infer_test::test_every_mode_and_metric',
  'base_directory': 'infer_files_test::test_evaluation_of_the_training_set',
  'export_directory': 'export_test::test_newest_checkpoint_of_base',
  'export_format': 'export_test::test_onnx_equals_inference',
  'dry_run': 'dry_run_test::test_training',
  'random_seed': 'train_test::test_seed_decides_the_weights',
  'tensorcheck_enable_checks': 'bad_input_test::test_values_that_overflow_are_found_by_the_checks',
  # Images.
  'read_pngs': 'train_shards_test::test_evaluated_loss_is_that_of_the_folder',
  'dataset_train_directory': 'infer_files_test::test_evaluation_of_the_training_set',
  'dataset_eval_directory': 'evaluate_test::test_losses_are_the_networks',
  'input_channels': 'own_labels_test::test_network_has_these_channels',
  'target_channels': 'own_labels_test::test_network_has_these_channels',
  'input_range': 'infer_sources_test::test_input_range_is_that_of_images_stretched_beforehand',
  'stretch_targets': 'train_test::test_flag_has_an_effect',
  'dataset_pattern': 'train_shards_test::test_evaluated_loss_is_that_of_the_folder',
  'dataset_num_shards': 'train_shards_test::test_bad_flags_are_said_in_a_line',
  'skip_corrupt_shards': (
    'train_shards_test::test_damage_is_said_in_a_line_and_left_out_if_asked_for'
  ),
  'is_recordio': 'bad_flags_test::test_shards_that_cannot_be',
  'train_on_full_dataset': (
    'train_shards_test::test_evaluation_shards_are_trained_on_only_if_asked_for'
  ),
  'data_batch_size': 'flag_effects_test::test_examples_that_are_decoded_at_once',
  'data_batch_num_threads': 'flag_effects_test::test_capacity_and_threads_of_shards',
  'data_batch_capacity': 'flag_effects_test::test_capacity_and_threads_of_shards',
  # Network and checkpoint.
  'restore_directory': 'train_infer_test::test_best_checkpoint_of_an_evaluation_starts_a_training',
  'restore_logits': 'restoration_test::test_without_logits_heads_start_fresh',
  'restore_inputs': 'restoration_test::test_other_depths_of_concordance',
  'model': 'flag_effects_test::test_network_that_starts_from_nothing_is_as_asked_for',
  'base_depth': 'flag_effects_test::test_network_that_starts_from_nothing_is_as_asked_for',
  'num_z_values': 'flag_effects_test::test_network_that_starts_from_nothing_is_as_asked_for',
  # Training.
  'optimizer': 'train_test::test_resumed_training_is_as_if_never_stopped',
  'learning_rate': 'train_test::test_flag_has_an_effect',
  'learning_decay_steps': 'train_test::test_rate_of_momentum_decays',
  'loss': 'train_test::test_flag_has_an_effect',
  'loss_crop_size': 'train_test::test_flag_has_an_effect',
  'loss_patch_stride': 'train_test::test_flag_has_an_effect',
  'loss_output_size': 'train_test::test_flag_has_an_effect',
  'preprocess_batch_size': 'train_test::test_flag_has_an_effect',
  'preprocess_shuffle_batch_num_threads': 'flag_effects_test::test_threads_that_make_batches',
  'preprocess_batch_capacity': 'train_test::test_flag_has_an_effect',
  'augment_offset_std': 'train_test::test_flag_has_an_effect',
  'augment_multiplier_std': 'train_test::test_flag_has_an_effect',
  'augment_noise_std': 'train_test::test_flag_has_an_effect',
  'number_of_steps': 'train_test::test_nothing_to_do_when_the_step_is_reached',
  'save_summaries_secs': 'train_test::test_intervals_of_checkpoints_and_summaries',
  'save_interval_secs': 'train_test::test_intervals_of_checkpoints_and_summaries',
  # Evaluation.
  'eval_interval_secs': 'infer_files_test::test_continuously_takes_up_each_new_checkpoint',
  'eval_delay_secs': 'infer_files_test::test_continuously_takes_up_each_new_checkpoint',
  'eval_once': 'evaluate_test::test_each_new_checkpoint_is_evaluated_and_the_best_kept',
  'metric_num_examples': 'evaluate_test::test_losses_are_means_over_all_patches',
  'stitch_crop_size': 'infer_test::test_crop_is_at_the_top_left_and_clipped',
  # Inference.
  'infer_channel_whitelist': (
    'infer_test::test_whitelist_orders_the_labels_and_leaves_the_input_panel_alone'
  ),
  'infer_statistics': 'infer_files_test::test_no_statistics_and_no_panels_leave_the_metrics',
  'prediction_format': 'infer_formats_test::test_second_run_replaces_the_first',
  'infer_padding': 'infer_padding_test::test_image_smaller_than_a_patch',
  'calibrate': 'calibrate_test::test_file_says_what_was_fitted',
  'calibrated': 'calibrate_test::test_distributions_are_scaled',
  'overwrite': 'infer_resume_test::test_overwrite_does_all_again',
  'infer_panels': 'infer_files_test::test_panel_asked_for',
  'infer_simplify_error_panels': 'infer_test::test_full_panel_has_twelve_columns',
  'infer_size': 'flag_effects_test::test_what_is_computed_at_once',
  'infer_method': 'flag_effects_test::test_what_is_computed_at_once',
  'infer_continuously': 'infer_files_test::test_continuously_takes_up_each_new_checkpoint',
  # Many machines.
  'master': 'bad_flags_test::test_machines_that_cannot_be',
  'ps_tasks': 'bad_flags_test::test_machines_that_cannot_be',
  'task': 'distributed_test::test_synchronous',
  'ps_hosts': 'distributed_test::test_taken_port',
  'worker_hosts': 'distributed_test::test_synchronous',
  'sync_replicas': 'distributed_test::test_synchronous',
  'dask_scheduler': 'dask_fields_test::test_waits_for_workers_and_labels_with_them',
  'dask_workers': 'dask_fields_test::TestLocalProcesses::test_is_told',
}

# A test with one of these marks may not run.
_LEFT_OUT = ('soak', 'skip', 'skipif', 'xfail')


def _flags_of_the_program() -> set[str]:
  assert program_flags.FLAGS is flags.FLAGS
  by_group = flags.FLAGS.flags_by_module_dict()
  prefix = program_flags.GROUP_PREFIX
  return {
    f.name for group, defined in by_group.items() if group.startswith(prefix) for f in defined
  }


def test_every_flag_is_observed_and_no_entry_is_stale():
  assert sorted(_OBSERVED_BY) == sorted(_flags_of_the_program())


@functools.cache
def _definitions(module: str) -> dict[str, ast.AST]:
  """Functions, classes and constants at a module's top, by name; none if it is missing."""
  path = ISL / f'{module}.py'
  found: dict[str, ast.AST] = {}
  for node in ast.parse(path.read_text() if path.is_file() else '').body:
    match node:
      case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
        found[name] = node
      case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
        found[name] = node
  return found


def _find(test: str) -> tuple[str, list[ast.AST]]:
  """The module of a test that is named here, and its function, after its class if it has one."""
  module, *names = test.split('::')
  nodes: list[ast.AST] = []
  scope = _definitions(module)
  for name in names:
    assert name in scope, f'{test}: there is no {name}'
    nodes.append(scope[name])
    body = getattr(nodes[-1], 'body', [])
    scope = {node.name: node for node in body if isinstance(node, ast.FunctionDef)}
  assert isinstance(nodes[-1], ast.FunctionDef) and names[-1].startswith('test_'), test
  return module, nodes


# Modules of helpers, whose functions and classes are used as testing.name or by name.
_HELPERS = tuple(sorted(path.stem for path in ISL.glob('*testing.py')))
# What asks for fixtures by their names.
_BY_NAME = ('getfixturevalue', 'usefixtures')


def _used(node: ast.AST) -> set[str]:
  """Names that a definition uses, of its own module or of helpers; a fixture is an argument."""
  found = set()
  for part in ast.walk(node):
    match part:
      case ast.Name(id=name) | ast.arg(arg=name):
        found.add(name)
      case ast.Attribute(value=ast.Name(id=of), attr=name) if of in ('self', *_HELPERS):
        found.add(name)
      case ast.Call(func=ast.Attribute(attr=function)) if function in _BY_NAME:
        texts = (c.value for c in ast.walk(part) if isinstance(c, ast.Constant))
        found.update(text for text in texts if isinstance(text, str))
  return found


def _flags_in(node: ast.AST) -> set[str]:
  """What follows -- in a definition's texts, but for those that say what it is."""
  said = {
    id(part.value)
    for part in ast.walk(node)
    if isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant)
  }
  texts = (p.value for p in ast.walk(node) if isinstance(p, ast.Constant) and id(p) not in said)
  return {
    name
    for text in texts
    if isinstance(text, str)
    for name in re.findall(r'(?<![\w-])--(\w+)', text)
  }


def _given_flags(module: str, nodes: list[ast.AST]) -> set[str]:
  """Flags that a test, or what it uses, gives the program.

  Args:
    module: has it.
    nodes: its class, if it has one, and its function.
  """
  *classes, test = nodes
  methods: dict[str, ast.AST] = {
    node.name: node
    for scope in classes
    for node in ast.iter_child_nodes(scope)
    if isinstance(node, ast.FunctionDef)
  }
  found: set[str] = set()
  seen: set[int] = set()
  waiting = [(module, test)]
  while waiting:
    where, node = waiting.pop()
    if id(node) in seen:
      continue
    seen.add(id(node))
    found |= _flags_in(node)
    scopes = [(scope, _definitions(scope)) for scope in (where, *_HELPERS)]
    if where == module:
      scopes.append((module, methods))
    for name in _used(node):
      waiting += [(scope, defined[name]) for scope, defined in scopes if name in defined]
  return found


@pytest.mark.parametrize('flag', sorted(_OBSERVED_BY))
def test_flag_is_given_in_the_test_that_observes_it(flag):
  module, nodes = _find(_OBSERVED_BY[flag])
  given = _given_flags(module, nodes)
  assert given & {flag, f'no{flag}'}, f'{_OBSERVED_BY[flag]} does not give --{flag}'


@pytest.mark.parametrize('test', sorted(set(_OBSERVED_BY.values())))
def test_test_is_in_the_suite(test):
  module, nodes = _find(test)
  marks = [mark for node in nodes for mark in getattr(node, 'decorator_list', [])]
  marks += [node for name, node in _definitions(module).items() if name == 'pytestmark']
  names = {n.attr for mark in marks for n in ast.walk(mark) if isinstance(n, ast.Attribute)}
  assert not names & set(_LEFT_OUT), f'{test} may be left out'


@pytest.mark.parametrize(
  ('test', 'given', 'not_given'),
  [
    # In the parametrization, in a fixture's helper, in a helper of the tests.
    ('train_test::test_flag_has_an_effect', {'loss_output_size', 'random_seed'}, {'optimizer'}),
    ('train_test::test_seed_decides_the_weights', {'read_pngs'}, {'save_interval_secs'}),
    ('launch_test::test_default', set(), {'mode', 'metric'}),
  ],
)
def test_flags_of_a_test_are_found(test, given, not_given):
  found = _given_flags(*_find(test))
  assert given <= found
  assert not not_given & found
