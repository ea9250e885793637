"""docs/performance.md has the tables that benchmarks/scaling.py computes."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.support.program import REPOSITORY


def _rows(text: str, start: str) -> list[list[str]]:
  """The numbers of the lines that start so."""
  return [re.findall(r'[\d.]+', line) for line in text.splitlines() if re.match(start, line)]


def test_tables_are_those_of_the_benchmark():
  done = subprocess.run(
    [sys.executable, REPOSITORY / 'benchmarks' / 'scaling.py'],
    capture_output=True,
    text=True,
    check=True,
  )
  page = (REPOSITORY / 'docs' / 'performance.md').read_text(encoding='utf-8')
  _, _, tables = page.partition('## How far it scales')
  rows = _rows(tables, r'\| \d')
  assert rows == _rows(done.stdout, r' *\d') and len(rows) > 10
