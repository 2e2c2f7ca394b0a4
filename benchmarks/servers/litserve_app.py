"""The same in LitServe.

python litserve_app.py <model.onnx> <port>
"""

import sys

import litserve
import numpy as np
import onnxruntime


class Api(litserve.LitAPI):
    def setup(self, device):
        self.session = onnxruntime.InferenceSession(sys.argv[1])

    def decode_request(self, request):
        (entry,) = request["inputs"]
        return np.asarray(entry["data"], np.uint8).reshape(entry["shape"])

    def predict(self, inputs):
        return self.session.run(("logits", "probabilities"), {"x": inputs})

    def encode_response(self, arrays):
        return {
            "outputs": [
                {"name": name, "datatype": "FP32", "shape": array.shape, "data": array.ravel().tolist()}
                for name, array in zip(("logits", "probabilities"), arrays, strict=True)
            ]
        }


if __name__ == "__main__":
    server = litserve.LitServer(Api(), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", generate_client_file=False)
