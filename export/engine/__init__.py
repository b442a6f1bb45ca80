"""What runs on the device: bundle -> TensorRT engines. Needs neither torch nor onnx."""
