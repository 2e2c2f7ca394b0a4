"""How to run a bundle's files from Python, C++ and HTTP: what the model card shows, to be copied."""

from collections.abc import Mapping
from string import Template
from typing import Any

from ..inference.datatypes import TYPES

PACKAGE = __name__.split(".")[0]
LIBTORCH_TYPES = {
    "bool": "kBool",
    "uint8": "kUInt8",
    **{f"int{bits}": f"kInt{bits}" for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"kFloat{bits}" for bits in (16, 32, 64)},
}

TOLD = {
    "classification": '{"label": ..., "probability": ...}',
    "multilabel": '{"labels": [...]}',
    "regression": '{"prediction": ...}',
}

PYTHON = Template("""
### Python

With numpy and onnxruntime alone, in this folder:

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
golden = np.load("golden.npz")
$outputs = session.run([$names], {"input": golden["input"]})
assert np.allclose($first, golden["$first"], atol=1e-4)
```

Where this project is installed, its loader checks every file against its hash first:

```python
from $package.engine.inference.runtime import Bundle

bundle = Bundle(".")
print(bundle.predict(golden["input"]))  # [$told, ...]
```
""")

CPP = Template("""
### C++ (libtorch)

```cpp
#include <torch/script.h>

#include <iostream>

int main() {
  torch::jit::script::Module model = torch::jit::load("model.pt");
  torch::Tensor input = torch::zeros({$sides}, torch::$dtype);
  torch::Tensor $last = model.forward({input}).toTuple()->elements()[$place].toTensor();
  std::cout << $last << std::endl;
}
```

`model.pt` is code: load only a file that you trust.
""")

HTTP = Template("""
### HTTP (Open Inference Protocol v2)

The folder two levels up is a model repository for NVIDIA Triton (`tritonserver --model-repository=...`):

```bash
python - > request.json <<'EOF'
import json
import numpy as np

x = np.load("golden.npz")["input"][:1]
tensor = {"name": "input", "datatype": "$datatype", "shape": x.shape, "data": $data}
print(json.dumps({"inputs": [tensor]}))
EOF
curl --data @request.json http://localhost:8000/v2/models/$name/infer
```
""")


def use(manifest: Mapping[str, Any]) -> str:
    """A section of Markdown, with what the formats of this bundle allow."""
    (tensor,) = manifest["inputs"]
    written = {parity["format"] for parity in manifest["parity"]}
    text = ""
    if "onnx" in written:
        names = [output["name"] for output in manifest["outputs"]]
        text += PYTHON.substitute(
            package=PACKAGE,
            outputs=", ".join(names) if len(names) > 1 else f"({names[0]},)",
            names=", ".join(f'"{name}"' for name in names),
            first=names[0],
            told=TOLD[manifest["task"]],
        )
    if "torchscript" in written:
        sides = ", ".join(map(str, (1, *tensor["shape"][1:])))
        last = {"last": manifest["outputs"][-1]["name"], "place": len(manifest["outputs"]) - 1}
        text += CPP.substitute(sides=sides, dtype=LIBTORCH_TYPES[tensor["dtype"]], **last)
    if "onnx" in written:
        # JSON knows no NaN: a missing value of a table is sent as null.
        data = "[None if v != v else v for v in x.ravel().tolist()]" if "columns" in tensor else "x.ravel().tolist()"
        text += HTTP.substitute(name=manifest["name"], datatype=TYPES[tensor["dtype"]], data=data)
    return text and f"## Use\n{text}"
