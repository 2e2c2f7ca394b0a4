"""The least that answers in FastAPI: a route around ONNX Runtime, and nothing else.

MODEL_FILE=<model.onnx> python bare.py <port>
"""

import sys

import uvicorn
from fastapi import FastAPI, Request, Response
from handler import answer

app = FastAPI()


@app.post("/infer")
async def infer(request: Request) -> Response:
    return Response(answer(await request.body()), media_type="application/json")


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), access_log=False, log_level="warning")
