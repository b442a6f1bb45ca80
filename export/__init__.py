"""Checkpoint > bundle: ONNX in float and INT8, with proof that they agree."""
