"""docs/flags.md says what the programs' flags are now."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.program import REPOSITORY

# The page, unless TensorFlow is loaded for it, which takes seconds.
_DRAW = """
import runpy, sys
page = runpy.run_path('docs/make_flags.py')['draw']()
assert 'tensorflow' not in sys.modules
print(page)
"""


def test_the_page_is_current():
  done = subprocess.run(
    [sys.executable, '-c', _DRAW],
    cwd=REPOSITORY,
    env={**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  page = (REPOSITORY / 'docs' / 'flags.md').read_text(encoding='utf-8')
  is_current = done.stdout == page
  assert is_current, 'write it anew: python docs/make_flags.py > docs/flags.md'
