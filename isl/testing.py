"""For tests: reference files where there are any, small fields of view made on the fly."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from isl.random_field import PUBLISHED as PUBLISHED
from isl.random_field import SAMPLE as SAMPLE
from isl.random_field import field_name as field_name
from isl.random_field import image_name as image_name
from isl.random_field import write_image_set as write_image_set


def shared_path(*parts: str) -> pathlib.Path:
  """A file or folder of the shared reference material; skips the test where it is missing.

  It lies in `../shared` beside the repository, or in $ISL_SHARED. With ISL_REQUIRE_SHARED=1 the
  test fails instead of being skipped.

  Args:
    *parts: from there on: 'data', 'condition_b_sample'.
  """
  # Under Bazel this file is a link into the repository.
  repository = pathlib.Path(__file__).resolve().parents[1]
  path = pathlib.Path(os.environ.get('ISL_SHARED') or repository.parent / 'shared', *parts)
  if not path.exists():
    if os.environ.get('ISL_REQUIRE_SHARED') == '1':
      pytest.fail(f'{path} is missing, and ISL_REQUIRE_SHARED=1 asks for it')
    pytest.skip(f'{path} is missing')
  return path


def python_process(code: str, *arguments: object) -> subprocess.Popen[str]:
  """Starts Python with what this process can import, for tests that kill it or starve it of disk.

  Args:
    code: the program.
    *arguments: what it finds in sys.argv[1:].

  Returns:
    The process, with pipes for its input and outputs, as text.
  """
  return subprocess.Popen(
    [sys.executable, '-c', code, *map(str, arguments)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
  )
