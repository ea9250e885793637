"""Runs pytest inside a Bazel test: `python pytest_main.py FILE [PYTEST_ARGUMENT ...]`."""

from __future__ import annotations

import os
import sys

import pytest


def main(arguments: list[str]) -> int:
  """Runs pytest with these arguments, and leaves nothing behind but what Bazel collects."""
  # Bazel hands a test no home and wants its temporary files in a folder of its own.
  scratch = os.environ['TEST_TMPDIR']
  os.environ.setdefault('HOME', scratch)
  os.environ['TMPDIR'] = scratch
  options = ['-c', 'pyproject.toml', '-p', 'no:cacheprovider', f'--basetemp={scratch}/pytest']
  if report := os.environ.get('XML_OUTPUT_FILE'):
    options.append(f'--junitxml={report}')
  return pytest.main([*options, *arguments])


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
