"""Draws demo_panel.png, the README's picture, from what `make demo` wrote.

    python docs/make_demo_panel.py demo/eval_eval_infer/*/target_error_panel.png

The picture is the error panel at half its size, with 8 bits a channel.
"""

import pathlib
import sys

import cv2
import numpy as np

panel = cv2.imread(sys.argv[1], cv2.IMREAD_UNCHANGED)
if panel is None:
  sys.exit(f'{sys.argv[1]} is not a picture')
half = cv2.resize(panel, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
path = pathlib.Path(__file__).with_name('demo_panel.png')
cv2.imwrite(str(path), (half / 257).astype(np.uint8), [cv2.IMWRITE_PNG_COMPRESSION, 9])
