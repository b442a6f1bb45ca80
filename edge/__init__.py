"""The node: camera > detect > track > crop > classify > aggregate > publish."""

import os

__version__ = "0.1.0"

# OpenCV reads this once, when it is loaded: a picture of 20,000 pixels a side would take 1.2 GB to
# decode, which a 4 GB board does not have. 2^26 pixels are 8192 a side.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**26))

# ONNX Runtime 1.29 and later reports to its maker from Linux too, and reads this once, when it is
# loaded: with it, nothing is sent and nothing kept (microsoft/onnxruntime, pull request 27379).
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
