"""What holds for all tests, and processes that they start, before any loads TensorFlow."""

import os

# As in isl/launch.py, for those that load TensorFlow otherwise.
os.environ.setdefault('TF_USE_LEGACY_KERAS', '1')
