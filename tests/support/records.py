"""Records of fields of view, for tests of what is made of them."""

from __future__ import annotations

from collections.abc import Sequence

from isl.report.field_record import FieldRecord, LabelRecord


def make_record(
  field: str, picture: str, labels: Sequence[LabelRecord] = (), files: Sequence[str] = ()
) -> FieldRecord:
  """A record of 1024 rows x 704 columns, of which all but a margin of 121 pixels is predicted.

  Args:
    field: the field of view's name.
    picture: the path of its input's picture, as seen from its folder.
    labels: what was predicted.
    files: the panels and predictions, as seen from its folder.
  """
  return FieldRecord(
    field=field,
    fingerprint='',
    image_size=(1024, 704),
    output_size=(782, 462),
    output_offset=(121, 121),
    padded_margin=0,
    pixel_size=None,
    seconds=1.0,
    files=tuple(files),
    input=picture,
    labels=tuple(labels),
  )
