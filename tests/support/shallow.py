"""For tests: makes FOVEA shallow in a process that loads this, one of Dask's workers say."""

import pytest

from tests.support.program import make_fovea_shallow

make_fovea_shallow(pytest.MonkeyPatch())
