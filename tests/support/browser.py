"""Gives tests a real browser without a window."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any
from unittest import mock

from tests.support.program import skip_what_lacks

_BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')
_FLAGS = (
  '--no-sandbox',
  '--disable-gpu',
  '--disable-dev-shm-usage',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
)


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
  """Starts Chromium and yields Playwright's browser; skips the test if there is none."""
  try:
    from playwright import sync_api
  except ImportError:
    skip_what_lacks('playwright')
  path = next(filter(None, map(shutil.which, _BROWSERS)), None)
  if path is None:
    skip_what_lacks(f'a browser ({", ".join(_BROWSERS)})')
  with (
    # Chromium puts a socket there, whose path may have 107 bytes; Bazel's folder has a longer one.
    tempfile.TemporaryDirectory(prefix='isl-', dir='/tmp') as short,
    mock.patch.dict(os.environ, TMPDIR=short),
    sync_api.sync_playwright() as playwright,
    contextlib.closing(
      playwright.chromium.launch(executable_path=path, args=list(_FLAGS))
    ) as browser,
  ):
    yield browser
