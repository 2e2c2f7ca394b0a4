"""Train, evaluate, export and verify a PyTorch Lightning model."""

import os

# From 1.29 on, ONNX Runtime sends figures of models and machines to its makers unless this is set before it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
