"""From checkpoint to bundle: ONNX in float and INT8, and checks that the files agree."""
