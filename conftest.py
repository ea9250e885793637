"""What holds for all tests, and processes that they start, before any loads TensorFlow."""

import os

# TensorFlow then leaves out Keras, which nothing here uses: a third of the time it takes to load.
os.environ.setdefault('TF_USE_LEGACY_KERAS', '1')
