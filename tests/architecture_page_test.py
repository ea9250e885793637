"""docs/architecture.md names files that there are, and functions that are in them."""

from __future__ import annotations

import ast
import functools
import re

import pytest

from tests.support.program import REPOSITORY

_ISL = REPOSITORY / 'isl'
_PATH, _NAME = r'`((?:\w+/)*\w+\.py)`', r'`(_*[A-Za-z]\w*(?:\.(?!py`)\w+)?)`'


@functools.cache
def _defined(path: str) -> set[str]:
  """What a module defines: functions, classes, their methods, constants."""
  names: set[str] = set()
  for node in ast.parse((_ISL / path).read_text(encoding='utf-8')).body:
    match node:
      case ast.FunctionDef(name=name):
        names.add(name)
      case ast.ClassDef(name=name):
        names |= {name, *(f'{name}.{x.name}' for x in node.body if isinstance(x, ast.FunctionDef))}
      case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
        names.add(name)
      # Where the module loads what it is asked for.
      case ast.If():
        names |= {x.name for x in node.orelse if isinstance(x, ast.FunctionDef)}
  return names


def _mentions() -> list[tuple[list[str], list[str]]]:
  """Paths, and names that should be in one of them: in rows of tables, and right after a path."""
  page = (REPOSITORY / 'docs' / 'architecture.md').read_text(encoding='utf-8')
  found = []
  for line in page.splitlines():
    if line.count(' | ') == 2 and '.py' in line:
      first, _, last = line.split(' | ')
      paths = re.findall(r'\(\.\./isl/([\w/]+\.py)\)', line) or re.findall(_PATH, line)
      found.append((paths, re.findall(_NAME, last) or re.findall(_NAME, first)))
  after_path = re.finditer(rf'{_PATH}(?P<names>(?:(?:,|\s|and)*{_NAME})+)', page)
  found += [([match[1]], re.findall(_NAME, match['names'])) for match in after_path]
  return found


@pytest.mark.parametrize(('paths', 'names'), _mentions())
def test_names_are_in_their_files(paths, names):
  assert names
  missing = set(names).difference(*map(_defined, paths))
  assert not missing, f'{", ".join(sorted(missing))} in {", ".join(paths)}'
