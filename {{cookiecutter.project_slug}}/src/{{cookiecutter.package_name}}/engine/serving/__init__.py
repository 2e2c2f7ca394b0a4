"""The HTTP server of a bundle: ONNX Runtime behind the Open Inference Protocol, without torch."""
