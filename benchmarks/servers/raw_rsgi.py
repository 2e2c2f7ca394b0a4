"""The least that answers as RSGI on granian, which is written in Rust: the fastest handler of the registries.

MODEL_FILE=<model.onnx> granian --interface rsgi --loop uvloop --no-access-log --port <port> raw_rsgi:app
"""

from handler import answer


async def app(scope, protocol):
    protocol.response_bytes(200, [("content-type", "application/json")], answer(await protocol()))
