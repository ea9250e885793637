"""Tests of field_run.py: the picture of the input."""

import numpy as np
import pytest

from isl.core.channels import input_stack
from isl.data import data_provider
from isl.data.data_provider import TruthReader
from isl.inference import field_run
from tests.support.program import original_fields, write_field


@pytest.mark.parametrize('band', [1, 5, 16, 256])
def test_input_picture_is_of_the_middle_depth_where_the_outputs_are(tmp_path, monkeypatch, band):
  """It is not smaller than an image of this size."""
  write_field(tmp_path, rows=30, columns=32, depths=3)
  (field,) = original_fields(tmp_path)
  field_of_view, inputs = field.read(), input_stack(2)
  monkeypatch.setattr(field_run, '_BAND', band)
  found = field_run.input_picture(TruthReader(field_of_view, 3, (16, 24)), inputs, 512)
  window = slice(3, 19), slice(3, 27)
  light = data_provider.input_crop(field_of_view, inputs, *window)[:, :, 1, 0, 0]
  np.testing.assert_allclose(found, light * 255, atol=0.51)
