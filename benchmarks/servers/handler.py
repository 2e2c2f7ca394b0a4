"""What the raw handlers have in common: JSON by orjson, and ONNX Runtime on the file that MODEL_FILE names.

On one thread, which is the fastest for requests of one sample: more of them wait for each other, and take the cores.
"""

import os

import numpy as np
import onnxruntime
import orjson

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(os.environ["MODEL_FILE"], options)
NAMES = ("logits", "probabilities")


def answer(body: bytes) -> bytes:
    (entry,) = orjson.loads(body)["inputs"]
    inputs = np.asarray(entry["data"], np.uint8).reshape(entry["shape"])
    answers = zip(NAMES, session.run(NAMES, {"x": inputs}), strict=True)
    outputs = [{"name": name, "datatype": "FP32", "shape": array.shape, "data": array} for name, array in answers]
    return orjson.dumps({"model_name": "bare", "outputs": outputs}, option=orjson.OPT_SERIALIZE_NUMPY)
