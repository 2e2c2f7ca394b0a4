"""The least that answers: a FastAPI route around ONNX Runtime, JSON by orjson, and nothing else.

python bare.py <model.onnx> <port>
"""

import sys

import numpy as np
import onnxruntime
import orjson
import uvicorn
from fastapi import FastAPI, Request, Response

session = onnxruntime.InferenceSession(sys.argv[1])
app = FastAPI()


@app.post("/infer")
async def infer(request: Request) -> Response:
    (entry,) = orjson.loads(await request.body())["inputs"]
    inputs = np.asarray(entry["data"], np.uint8).reshape(entry["shape"])
    names = ("logits", "probabilities")
    answers = zip(names, session.run(names, {"x": inputs}), strict=True)
    outputs = [{"name": name, "datatype": "FP32", "shape": array.shape, "data": array} for name, array in answers]
    body = orjson.dumps({"model_name": "bare", "outputs": outputs}, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, media_type="application/json")


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[2]), access_log=False, log_level="warning")
