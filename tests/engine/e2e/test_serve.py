"""`serve` in a separate process, with requests by NVIDIA's client, by plain HTTP and by people."""

import gzip
import hashlib
import http.client
{% if cookiecutter.data_kind == "images" %}
import io
{% endif %}
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import requests
{% if cookiecutter.data_kind == "images" %}
from PIL import Image
{% endif %}
from server import DATATYPE, INFER, NAME, ONE, Server, request, series, serving
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from {{ cookiecutter.package_name }}.engine.inference.runtime import read_golden

STAGES = ("queue", "compute_input", "compute_infer", "compute_output")


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[Server]:
    with serving(bundle) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[InferenceServerClient]:
    client = InferenceServerClient(f"127.0.0.1:{server.port}", concurrency=8)
    yield client
    client.close()


@pytest.fixture(scope="module")
def samples(bundle: Path) -> npt.NDArray[Any]:
    """Returns 64 samples that differ."""
    golden = read_golden(bundle)[0]["x"]
    return np.concatenate([np.roll(golden, shift, axis=-1) for shift in range(8)])


def asked(name: str, inputs: npt.NDArray[Any], binary: bool) -> dict[str, Any]:
    tensor = InferInput("x", list(inputs.shape), DATATYPE)
    tensor.set_data_from_numpy(inputs, binary_data=binary)
    outputs = [InferRequestedOutput(output, binary_data=binary) for output in ("logits", "probabilities")]
    return {"model_name": name, "inputs": [tensor], "outputs": outputs}


def test_metadata_is_that_of_the_bundle(client: InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(NAME)
    assert client.is_model_ready(NAME, "1")
    assert not client.is_model_ready(NAME, "2")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data", "model_configuration", "statistics"]
    metadata = client.get_model_metadata(NAME, "1")
    assert metadata["versions"] == ["1"]
    assert metadata["inputs"] == [{"name": "x", "datatype": DATATYPE, "shape": [-1, *ONE.shape[1:]]}]
    assert metadata["outputs"] == [
        {"name": "logits", "datatype": "FP32", "shape": [-1, {{ 2 if cookiecutter.data_kind == "tables" else 10 }}]},
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, {{ 2 if cookiecutter.data_kind == "tables" else 10 }}]},
    ]


def test_clients_of_triton_find_configuration_statistics_and_index(
    client: InferenceServerClient, bundle: Path, samples: npt.NDArray[Any]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of gRPC, which NVIDIA's package brings
        from tritonclient.grpc import model_config_pb2
    from google.protobuf import json_format, text_format

    written = text_format.Parse((bundle.parent / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    written.platform = "onnxruntime_onnx"
    assert json_format.ParseDict(client.get_model_config(NAME, "1"), model_config_pb2.ModelConfig()) == written
    (before,) = client.get_inference_statistics(NAME, "1")["model_stats"]
    client.infer(**asked(NAME, samples[:7], True))
    (after,) = client.get_inference_statistics()["model_stats"]
    assert (after["name"], after["version"]) == (NAME, "1")
    assert after["inference_count"] - before["inference_count"] == 7
    assert after["execution_count"] - before["execution_count"] == 1
    stages = [{name: stats["inference_stats"][name] for name in STAGES} for stats in (before, after)]
    assert all(stages[1][name]["count"] == stages[0][name]["count"] + 1 for name in STAGES)
    assert all(stages[1][name]["ns"] > stages[0][name]["ns"] for name in STAGES if name != "queue")
    assert after["inference_stats"]["success"]["count"] >= before["inference_stats"]["success"]["count"]
    assert client.get_model_repository_index() == [{"name": NAME, "version": "1", "state": "READY", "reason": ""}]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_request_is_answered_as_a_plain_one(
    client: InferenceServerClient, samples: npt.NDArray[Any], algorithm: str
) -> None:
    asks = asked(NAME, samples[:7], True)
    found = client.infer(**asks, request_compression_algorithm=algorithm).as_numpy("logits")
    np.testing.assert_array_equal(found, client.infer(**asks).as_numpy("logits"))


def test_compressed_body_that_is_damaged_or_too_large_is_refused(server: Server) -> None:
    good, damaged = gzip.compress(request(ONE)), "the body cannot be decompressed: "
    assert server.ask("POST", INFER, good, Content_Encoding="GZip")[0] == 200
    for body, status, sentence in (
        (good[:-5], 400, f"{damaged}it ends too early, or something follows it."),
        (good + b"x", 400, f"{damaged}it ends too early, or something follows it."),
        (b"no gzip", 400, f"{damaged}Error -3 while decompressing data: incorrect header check."),
        (gzip.compress(bytes(17 * 2**20)), 413, "the body is larger than the 16,777,216 bytes that are taken."),
    ):
        assert server.error("POST", INFER, body, Content_Encoding="gzip") == (status, sentence)
    refused = server.error("POST", INFER, good, Content_Encoding="br")
    assert refused == (415, "the content encoding 'br' is not taken: send gzip, deflate or none.")


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "JSON"])
@pytest.mark.parametrize("size", [1, 7, 64])
def test_answers_are_those_of_the_file(
    client: InferenceServerClient, bundle: Path, samples: npt.NDArray[Any], size: int, binary: bool
) -> None:
    session = onnxruntime.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
    names = ["logits", "probabilities"]
    expected = session.run(names, {"x": samples[:size]})
    found = client.infer(**asked(NAME, samples[:size], binary), request_id="mine")
    for name, right in zip(names, expected, strict=True):
        np.testing.assert_array_equal(found.as_numpy(name), right)
    assert found.get_response()["id"] == "mine"
    assert found.get_response()["model_version"] == "1"


def test_concurrent_requests_each_get_their_own_answer(bundle: Path, samples: npt.NDArray[Any]) -> None:
    """Requests wait for each other here, so that they are computed in batches."""
    session = onnxruntime.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
    (expected,) = session.run(["logits"], {"x": samples})
    wrong: list[int] = []

    def ask(server: Server, first: int) -> None:
        for index in range(first, 64, 8):
            _, _, answer = server.ask("POST", INFER, request(samples[index : index + 1]))
            logits = json.loads(answer)["outputs"][0]["data"]
            if not np.allclose(logits, expected[index], atol=1e-4):
                wrong.append(index)

    with serving(bundle, "max_delay_ms=20") as server:
        threads = [threading.Thread(target=ask, args=(server, first)) for first in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = server.metrics()
    assert wrong == []
    assert found["serving_batch_size_sum"] == 64
    assert found["serving_batch_size_count"] < 48


@pytest.mark.parametrize("path", ["/v2/models/%0A%1Bx/ready", "/%0A%00", f"/v2/models/{'x' * 3000}/ready"])
def test_error_shows_text_of_the_client_on_one_short_line(bundle: Path, path: str) -> None:
    with serving(bundle) as server:
        status, _, answer = server.ask("GET", path)
    sentence = json.loads(answer)["error"]
    assert status == 404
    assert sentence.isprintable()
    assert len(sentence) <= 300


def test_mistakes_reach_the_client_as_one_sentence(client: InferenceServerClient, samples: npt.NDArray[Any]) -> None:
    with pytest.raises(InferenceServerException, match=f"other is not served here: {NAME}, version 1, is"):
        client.infer(**asked("other", samples[:1], True))
    for binary in (True, False):
        many = np.repeat(ONE, 65, axis=0)
        tensor = InferInput("x", list(many.shape), DATATYPE)
        tensor.set_data_from_numpy(many, binary_data=binary)
        with pytest.raises(InferenceServerException, match="a batch of 65 is out of range: this model takes 1 to 64"):
            client.infer(NAME, [tensor])


SIDES = ", ".join(map(str, ONE.shape[1:]))
HEADER = json.dumps(
    {
        "inputs": [
            {"name": "x", "datatype": DATATYPE, "shape": ONE.shape, "parameters": {"binary_data_size": ONE.nbytes}}
        ]
    }
).encode()


@pytest.mark.parametrize(
    ("body", "headers", "sentence"),
    [
        (b"", {}, "the request is no JSON"),
        (b"[]", {}, "the request is no JSON object"),
        (b"{}", {}, "'inputs' must be a list of tensors: 'x'"),
        (b"[" * 100_000, {}, "the request is no JSON"),
        (request(ONE, name="y"), {}, "the input 'y' is not known"),
        (request(ONE, datatype="BOOL"), {}, f"has the datatype 'BOOL', but this model takes {DATATYPE}"),
        (request(ONE, shape=[1, 64]), {}, f"has the shape [1, 64], but this model takes [batch, {SIDES}]"),
        (request(ONE, shape="1,1,8,8"), {}, "'shape' of 'x' is no list of whole numbers"),
        (request(ONE, shape=[0, *ONE.shape[1:]], data=[]), {}, "a batch of 0 is out of range"),
        (request(ONE, shape=[10**15, *ONE.shape[1:]]), {}, "a batch of 1000000000000000 is out of range"),
        (request(ONE, data=[0] * 3), {}, f"has the shape [3], not [1, {SIDES}]"),
        (request(ONE, data=[[0] * 3, [0]]), {}, "is no array of numbers"),
        (request(ONE, data=["0"] * ONE.size), {}, f"does not hold numbers of {DATATYPE} alone"),
{% if cookiecutter.data_kind == "images" %}
        (request(ONE, data=[10**30] * 64), {}, "'x'"),
        (request(ONE, data=[None] * 64), {}, "does not hold numbers of UINT8 alone"),
        (request(ONE, data=[0.5] * 64), {}, "does not hold numbers of UINT8 alone"),
        (request(ONE, data=[256] * 64), {}, "holds numbers that do not fit into UINT8"),
        (request(ONE, data=[-1] * 64), {}, "holds numbers that do not fit into UINT8"),
{% else %}
        (request(ONE, data=[True] * 30), {}, "does not hold numbers of FP32 alone"),
        (request(ONE, data=[None] * 29 + ["x"]), {}, "does not hold numbers of FP32 alone"),
        (request(ONE, data=[1e39] * 30), {}, "holds values that are not within"),
{% endif %}
        (request(ONE).replace(b"0", b"NaN", 1), {}, "the request is no JSON"),
        (request(ONE, data=None), {}, "has no list 'data'"),
        (request(ONE, parameters=[]), {}, "'parameters' of 'x' is no JSON object"),
        (request(ONE, parameters={"shared_memory_region": "x"}), {}, "'shared_memory_region' of 'x' is not offered"),
        (HEADER, {}, f"binary_data_size={ONE.nbytes} of 'x' does not fit: 0 bytes follow the JSON"),
        (HEADER + bytes(23), {"inference_header_content_length": str(len(HEADER))}, "23 bytes follow the JSON"),
        (request(ONE)[:-2] + b"," + request(ONE)[12:], {}, "'inputs' names 'x' twice"),
        (HEADER + bytes(64), {"inference_header_content_length": "9999"}, "is no length within this request"),
        (HEADER + bytes(64), {"inference_header_content_length": "-1"}, "is no length within this request"),
        (request(ONE) + bytes(3), {"inference_header_content_length": str(len(request(ONE)))}, "3 bytes follow the"),
    ],
)
def test_malformed_request_is_refused_in_one_sentence(
    server: Server, body: bytes, headers: dict[str, str], sentence: str
) -> None:
    status, error = server.error("POST", INFER, body, **headers)
    assert status == 400
    assert sentence in error
    assert len(error.splitlines()) == 1
    assert len(error) < 250
    assert server.ask("POST", INFER, request(ONE))[0] == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_body_that_is_too_large_is_refused_unread(server: Server, chunked: bool) -> None:
    """The default limit is 16 MiB; a body in chunks has no length in its headers."""
    headers = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {100 * 2**20}"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\n".encode())
        for _ in range(17 if chunked else 0):
            connection.sendall(f"{2**20:x}\r\n".encode() + bytes(2**20) + b"\r\n")
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        error = json.loads(answer.read())["error"]
    assert answer.status == 413
    assert error == "the body is larger than the 16,777,216 bytes that are taken."


{% if cookiecutter.data_kind == "images" %}
def test_person_sends_a_picture(server: Server, bundle: Path) -> None:
    golden, outputs = read_golden(bundle)
    inputs, probabilities = golden["x"], outputs["probabilities"]
    for index in range(3):
        file = io.BytesIO()
        Image.fromarray(inputs[index, 0]).save(file, "png")
        status, _, answer = server.ask("POST", "/predict", file.getvalue())
        prediction = json.loads(answer)
        assert status == 200
        assert prediction["label"] == str(probabilities[index].argmax())
        assert list(prediction["probabilities"].values()) == pytest.approx(probabilities[index].tolist(), abs=1e-5)
        assert prediction["probability"] == max(prediction["probabilities"].values())
    assert server.error("POST", "/predict", b"no picture") == (
        400,
        "this file cannot be used: it is no picture, or damaged.",
    )


def test_form_and_list_hold_several_pictures(server: Server, bundle: Path) -> None:
    """Asked by `requests`, as a browser or a script would."""
    golden, outputs = read_golden(bundle)
    inputs, labels = golden["x"][:3], [str(number) for number in outputs["probabilities"][:3].argmax(axis=1)]
    files = [io.BytesIO() for _ in inputs]
    for file, picture in zip(files, inputs, strict=True):
        Image.fromarray(picture[0]).save(file, "png")
    address = f"http://127.0.0.1:{server.port}/predict"
    one = requests.post(address, files={"file": ("one.png", files[0].getvalue())}, timeout=30).json()
    assert (one["file"], one["label"]) == ("one.png", labels[0])
    named = [("file", (f"{number}.png", file.getvalue())) for number, file in enumerate(files)]
    several = requests.post(address, files=named, data={"ignored": "by pictures"}, timeout=30).json()["predictions"]
    assert [row["file"] for row in several] == ["0.png", "1.png", "2.png"]
    assert [row["label"] for row in several] == labels
    for data in (inputs.tolist(), inputs.reshape(3, -1).tolist()):
        assert [row["label"] for row in requests.post(address, json=data, timeout=30).json()["predictions"]] == labels
    many = requests.post(address, json=np.repeat(inputs[:1], 150, axis=0).tolist(), timeout=30).json()["predictions"]
    assert {row["label"] for row in many} == {labels[0]}, "more than the largest batch"
    assert len(many) == 150


def test_form_or_list_that_cannot_be_used_is_refused_in_one_sentence(server: Server) -> None:
    form = {"Content_Type": "multipart/form-data; boundary=x"}
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\nno picture\r\n'
    field = b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nvalue\r\n'
    as_json = {"Content_Type": "application/json"}
    for body, headers, status, sentence in (
        (part + b"--x--\r\n", form, 400, "a.png: this file cannot be used: it is no picture, or damaged."),
        (part, form, 400, "the form cannot be read: it ends too early."),
        (b"--y", form, 400, "the form cannot be read: "),
        (field + b"--x--\r\n", form, 400, "the form holds no file: send one, as curl -F file=@<file> does."),
        (b"", {"Content_Type": "multipart/form-data"}, 400, "the form cannot be read: No boundary given."),
        ((part + b"\r\n") * 10_001 + b"--x--", form, 413, "the request holds more than 10,000 samples: send several."),
        (b"[[1, 2], [3, 4]]", as_json, 400, "sample 1: the body has the shape [2], not [1, 8, 8]."),
        (b"[{}, {}]", as_json, 400, "sample 1: the input 'x' is missing"),
        (json.dumps([[0] * 64, 1]).encode(), as_json, 400, "sample 2: the body is no list and no object"),
    ):
        error = server.error("POST", "/predict", body, **headers)
        assert error[0] == status, error
        assert error[1].startswith(sentence)


{% else %}
def test_person_sends_a_row(server: Server, bundle: Path) -> None:
    golden, outputs = read_golden(bundle)
    inputs, probabilities = golden["x"], outputs["probabilities"]
    described = json.loads(server.ask("GET", "/predict")[2])
    names = [column["name"] for column in described["columns"]]
    assert described["example"] == pytest.approx(inputs[0].tolist())
    for index in range(3):
        row = [*inputs[index].tolist()]
        as_csv = "\n".join(",".join(map(str, line)) for line in (names, row)).encode()
        as_json = json.dumps(dict(zip(names, row, strict=True))).encode()
        for body, kind in ((as_csv, "text/csv"), (as_json, "application/json")):
            status, _, answer = server.ask("POST", "/predict", body, Content_Type=kind)
            prediction = json.loads(answer)
            assert status == 200
            assert prediction["label"] == described["labels"][probabilities[index].argmax()]
            assert list(prediction["probabilities"].values()) == pytest.approx(probabilities[index].tolist(), abs=1e-5)
    for body, kind, sentence in (
        (b"a,b\n1,2", "text/csv", "it has no column 'mean radius', but a, b."),
        (b"{}", "application/json", "'mean radius' is missing: send null where it is not known."),
        (as_json.replace(str(row[3]).encode(), b'"x"'), "application/json", f"the row: {names[3]}='x' is no number."),
        (
            as_json.replace(str(row[3]).encode(), b"[]"),
            "application/json",
            f"'{names[3]}' is neither a number nor text.",
        ),
    ):
        error = server.error("POST", "/predict", body, Content_Type=kind)
        what = "file" if kind == "text/csv" else "row"
        assert error == (400, f"this {what} cannot be used: {sentence}")
    nothing = json.dumps(dict.fromkeys(names)).encode()
    assert server.ask("POST", "/predict", nothing, Content_Type="application/json")[0] == 200, "all is missing"


def test_form_and_list_hold_several_rows(server: Server, bundle: Path) -> None:
    """Asked by `requests`, as a browser or a script would."""
    golden, outputs = read_golden(bundle)
    described = json.loads(server.ask("GET", "/predict")[2])
    names = [column["name"] for column in described["columns"]]
    rows = golden["x"][:3].tolist()
    labels = [described["labels"][number] for number in outputs["probabilities"][:3].argmax(axis=1)]
    objects = [dict(zip(names, row, strict=True)) for row in rows]
    as_csv = "\n".join(",".join(map(str, line)) for line in (names, *rows)).encode()
    address = f"http://127.0.0.1:{server.port}/predict"
    for sent in (
        {"json": objects},
        {"json": rows},
        {"data": as_csv, "headers": {"Content-Type": "text/csv"}},
        {"files": {"file": ("rows.csv", as_csv)}},
    ):
        answers = requests.post(address, timeout=30, **sent).json()["predictions"]
        assert [answer["label"] for answer in answers] == labels
    one = requests.post(address, files={name: (None, str(value)) for name, value in objects[0].items()}, timeout=30)
    assert one.json()["label"] == labels[0], "a form with a field for each column"
    assert requests.post(address, json=objects[:1], timeout=30).json()["predictions"][0]["label"] == labels[0]
    wrong = [objects[0], {**objects[1], names[3]: "x"}]
    refused = requests.post(address, json=wrong, timeout=30)
    assert refused.status_code == 400
    sentence = f"sample 2: this row cannot be used: the row: {names[3]}='x' is no number."
    assert refused.json() == {"error": sentence}


{% endif %}
def test_unknown_path_or_method_is_refused(server: Server) -> None:
    assert server.error("GET", "/nowhere") == (404, "GET /nowhere: Not Found")
    assert server.error("GET", INFER) == (405, f"GET {INFER}: Method Not Allowed")
    assert server.error("GET", f"/v2/models/{NAME}/versions/2")[0] == 404


def test_page_may_load_nothing_from_other_servers(server: Server) -> None:
    status, headers, page = server.ask("GET", "/")
    assert status == 200
    assert headers["content-type"].startswith("text/html")
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert b"http://" not in page
    assert b"https://" not in page


def test_token_is_needed_where_one_is_set(bundle: Path) -> None:
    with serving(bundle, "host=0.0.0.0", SERVE_TOKEN="secret") as server:
        for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            status, error = server.error("POST", INFER, request(ONE), **given)
            assert status == 401
            assert "Authorization: Bearer <token>" in error
        assert server.ask("GET", "/v2")[0] == 401
        assert server.ask("POST", INFER, request(ONE), Authorization="Bearer secret")[0] == 200
        for path in ("/", "/v2/health/live", "/v2/health/ready"):
            assert server.ask("GET", path)[0] == 200


def changed(folder: Path) -> None:
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"\0")


@pytest.mark.parametrize(
    ("options", "environment", "exit_code", "sentence"),
    [
        ([], {}, 1, "model.onnx in "),
        (["host=0.0.0.0"], {}, 2, "host=0.0.0.0 lets others in: set the environment variable SERVE_TOKEN"),
        (["host=0.0.0.0"], {"SERVE_TOKEN": ""}, 2, "SERVE_TOKEN is empty"),
        (["port=99999"], {}, 2, "port=99999 is out of range: give 0 to 65535."),
        (["max_queue=0"], {}, 2, "max_queue=0 is out of range"),
        (["logs=xml"], {}, 2, "logs=xml"),
        (["host=no.such.host"], {}, 2, "host=no.such.host"),
        (["providers=[]"], {}, 2, "providers=[] computes nowhere"),
        (["providers=[NoSuchProvider]"], {}, 2, "providers=[NoSuchProvider] is not available here"),
        (["bundle=nowhere"], {}, 2, "bundle=nowhere does not exist"),
    ],
)
def test_server_that_cannot_start_says_why(
    bundle: Path, tmp_path: Path, options: list[str], environment: dict[str, str], exit_code: int, sentence: str
) -> None:
    copied = Path(shutil.copytree(bundle, tmp_path / "1"))
    if exit_code == 1:
        changed(copied)
    command = [sys.executable, "-m", NAME, "serve", f"bundle={copied}", "port=0", *options]
    refused = subprocess.run(
        command, cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert refused.returncode == exit_code, refused.stdout
    (line,) = refused.stderr.splitlines()
    assert line.startswith("error: ")
    assert sentence in line
    assert [path.name for path in tmp_path.iterdir()] == ["1"], "a server writes nothing"


def test_port_in_use_is_refused(bundle: Path, server: Server) -> None:
    command = [sys.executable, "-m", NAME, "serve", f"bundle={bundle}", f"port={server.port}"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 2
    assert f"error: host=127.0.0.1 port={server.port} cannot be taken: Address already in use.\n" == refused.stderr


def test_server_imports_no_torch(bundle: Path) -> None:
    code = (
        f"import sys, {NAME}.engine.serving.serve, {NAME}.engine.serving.app\n"
        "print(sorted(sys.modules.keys() & {'torch', 'lightning', 'onnx', 'matplotlib', 'sklearn'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_server_once_open_requests_are_answered(bundle: Path, number: signal.Signals) -> None:
    """Every client that was answered got a complete answer, and the exit code is 0."""
    with serving(bundle) as server:
        statuses: list[int] = []
        done = threading.Event()

        def ask() -> None:
            while not done.is_set():
                try:
                    status, _, answer = server.ask("POST", INFER, request(ONE))
                except ConnectionError:
                    return  # it came too late
                assert len(json.loads(answer)["outputs"]) == 2
                statuses.append(status)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        while len(statuses) < 40:
            assert server.process.poll() is None
        server.process.send_signal(number)
        assert server.process.wait(timeout=30) == 0
        done.set()
        for thread in threads:
            thread.join()
        assert set(statuses) == {200}
        assert server.lines()[-1]["message"] == "stopped every request that had come in was answered"


@pytest.mark.skipif(sys.platform == "win32", reason="not run: there are no pseudo-terminals")
def test_person_at_a_terminal_gets_text_where_the_log_goes_to_a_file(bundle: Path, tmp_path: Path) -> None:
    terminal, end = os.openpty()
    command = [sys.executable, "-m", NAME, "serve", f"bundle={bundle}", "port=0"]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=end) as process:
        os.close(end)
        shown = b""
        while b"serving     " not in shown:
            shown += os.read(terminal, 4096)
        process.terminate()
        assert process.wait(timeout=30) == 0
    os.close(terminal)
    assert f"serving     {NAME}, version 1, at http://127.0.0.1:".encode() in shown
    written = [json.loads(line) for line in (tmp_path / "log").read_text(encoding="utf-8").splitlines()]
    assert [line["message"].split()[0] for line in written] == ["bundle", "speed", "next", "serving", "stopped"]


def test_request_has_an_id_and_a_line_in_the_log(bundle: Path) -> None:
    with serving(bundle) as server:
        _, given, _ = server.ask("POST", INFER, request(ONE), X_Request_ID="mine-1")
        _, drawn, _ = server.ask("POST", INFER, b"{}", X_Request_ID="not one\tof these")
        server.ask("GET", "/v2/health/ready")
        server.ask("GET", "/v2", X_Request_ID="last")
        found = server.requests(last="last")
    assert given["x-request-id"] == "mine-1"
    assert len(drawn["x-request-id"]) == 16
    ids = [line["request_id"] for line in found]
    assert ids == ["mine-1", drawn["x-request-id"], "last"], "a probe leaves no line"
    assert [line["status"] for line in found] == [200, 400, 200]
    assert [line["path"] for line in found] == [INFER, INFER, "/v2"]
    for line in found:
        assert line.keys() == {"time", "level", "request_id", "method", "path", "status", "ms"}
        assert 0 < line["ms"] < 30_000


def test_metrics_count_requests(bundle: Path) -> None:
    with serving(bundle) as server:
        for _ in range(3):
            server.ask("POST", INFER, request(ONE))
        server.ask("POST", INFER, b"{}")
        server.ask("POST", INFER, request(ONE), Content_Length="x")
        server.ask("GET", "/v2/models/other")
        found = server.metrics()
        sha256 = json.loads((bundle / "manifest.json").read_text())["files"]["model.onnx"]["sha256"]
    assert found[series("serving_request_seconds_count", code="200", route="infer")] == 3
    assert found[series("serving_request_seconds_count", code="400", route="infer")] == 1
    assert found[series("serving_rejected_total", reason="malformed")] == 2, "one of them was no HTTP"
    assert found[series("serving_rejected_total", reason="unknown_model")] == 1
    assert found[series("serving_model_info", name=NAME, sha256=sha256, version="1")] == 1
    assert found["serving_batch_size_count"] == found["serving_batch_size_sum"] == 3
    assert found["serving_queue_length"] == 0
    for stage in ("read", "queue", "compute", "write"):
        assert found[series("serving_stage_seconds_count", stage=stage)] == 3
        assert (0 if stage == "queue" else 1e-7) <= found[series("serving_stage_seconds_sum", stage=stage)] < 3
    assert not [name for name in found if "drift" in name or "input" in name], "not asked for"


def test_drift_stands_beside_the_training_split(bundle: Path, samples: npt.NDArray[Any]) -> None:
    with serving(bundle, "drift=true") as server:
        manifest = json.loads((bundle / "manifest.json").read_text())
        _, _, answer = server.ask("POST", INFER, request(samples))
        server.ask("POST", INFER, request(samples))
        found = server.metrics()
    channel, values = {{ '"mean radius", samples[:, 0].astype(float)' if cookiecutter.data_kind == "tables" else '"0", samples' }}
    assert found[series("serving_input_mean", channel=channel)] == pytest.approx(values.mean())
    assert found[series("serving_input_std", channel=channel)] == pytest.approx(values.std())
    assert found[series("serving_training_input_mean", channel=channel)] == manifest["inputs"][0]["mean"][0]
    assert found[series("serving_training_input_std", channel=channel)] == manifest["inputs"][0]["std"][0]
    probabilities = np.array(json.loads(answer)["outputs"][1]["data"]).reshape(64, -1)
    for number, label in enumerate(manifest["outputs"][1]["labels"]):
        count = np.count_nonzero(probabilities.argmax(axis=1) == number)
        assert found.get(series("serving_predictions_total", label=label), 0) == 2 * count
        share = manifest["outputs"][1]["label_counts"][number] / manifest["data"]["num_samples"]["train"]
        assert found[series("serving_training_label_share", label=label)] == pytest.approx(share)


{% if cookiecutter.data_kind == "images" %}
def test_sample_as_numbers_is_answered_as_its_picture_is(server: Server, samples: npt.NDArray[Any]) -> None:
    file = io.BytesIO()
    Image.fromarray(samples[0, 0]).save(file, "png")
    picture = server.ask("POST", "/predict", file.getvalue())
    for data in (samples[0].tolist(), samples[0].ravel().tolist()):
        for kind in ("application/json", "Application/JSON; charset=utf-8", "application/x-www-form-urlencoded"):
            numbers = server.ask("POST", "/predict", json.dumps(data).encode(), Content_Type=kind)
            assert (numbers[0], numbers[2]) == (200, picture[2])
    for data, sentence in (
        ([1, 2], "the body has the shape [2], not [1, 8, 8]."),
        ({}, "the input 'x' is missing: this model takes x."),
    ):
        error = server.error("POST", "/predict", json.dumps(data).encode(), Content_Type="application/json")
        assert error[0] == 400
        assert sentence in error[1]


{% endif %}
@pytest.fixture
def name_dir(bundle: Path, tmp_path: Path) -> Path:
    """Returns `artifacts/<name>` with versions 1 and 2."""
    for version in (1, 2):
        add_version(tmp_path / NAME, bundle, version)
    return tmp_path / NAME


def add_version(name_dir: Path, bundle: Path, version: int) -> Path:
    """Adds a version by one rename, as `export` publishes it."""
    name_dir.mkdir(exist_ok=True)
    incoming = Path(shutil.copytree(bundle, name_dir / ".incoming"))
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    (incoming / "manifest.json").write_text(json.dumps({**manifest, "version": version}), encoding="utf-8")
    return incoming.rename(name_dir / str(version))


def without_golden_answers(folder: Path) -> Path:
    """Changes the golden answers, and their hash in the manifest, so that the model does not reproduce them."""
    inputs, outputs = read_golden(folder)
    np.savez(folder / "golden.npz", **inputs, **{name: output + 1 for name, output in outputs.items()})
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    golden = (folder / "golden.npz").read_bytes()
    manifest["files"]["golden.npz"] = {"sha256": hashlib.sha256(golden).hexdigest(), "bytes": len(golden)}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def test_signal_moves_it_to_the_newest_version_and_back_while_it_answers(name_dir: Path, bundle: Path) -> None:
    by_client: list[list[str]] = [[] for _ in range(4)]  # the versions that answered each client, in their order
    done = threading.Event()
    with serving(name_dir) as server:

        def ask(versions: list[str]) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            while not done.is_set():
                connection.request("POST", INFER, request(ONE))
                versions.append(json.loads(connection.getresponse().read())["model_version"])
            connection.close()

        def wait_for_answers_of(version: str) -> None:
            while any(versions[-1:] != [version] for versions in by_client):
                assert server.process.poll() is None
                assert all(thread.is_alive() for thread in threads)
                time.sleep(0.01)

        threads = [threading.Thread(target=ask, args=[versions]) for versions in by_client]
        for thread in threads:
            thread.start()
        wait_for_answers_of("2")
        add_version(name_dir, bundle, 3)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("moved from version 2 to 3")
        wait_for_answers_of("3")
        (name_dir / "3").rename(name_dir / "3.away")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("moved from version 3 to 2")
        wait_for_answers_of("2")
        done.set()
        for thread in threads:
            thread.join()
        found = server.metrics()
    for versions in by_client:
        assert [version for version, _ in groupby(versions)] == ["2", "3", "2"]
    assert found[series("serving_request_seconds_count", code="200", route="infer")] == sum(map(len, by_client))
    assert not [name for name in found if name.startswith("serving_request") and 'code="200"' not in name]
    sha256 = json.loads((bundle / "manifest.json").read_text())["files"]["model.onnx"]["sha256"]
    assert [name for name in found if name.startswith("serving_model_info")] == [
        series("serving_model_info", name=NAME, sha256=sha256, version="2")
    ]


def test_version_that_fails_its_golden_samples_is_not_taken(name_dir: Path, bundle: Path) -> None:
    with serving(name_dir, "poll_seconds=0.1") as server:
        bad = add_version(name_dir.parent / "made", bundle, 3)
        without_golden_answers(bad).rename(name_dir / "3")
        message = server.wait_for("left out version 3")
        assert "answers its golden samples otherwise than the trained model: logits differ by" in message
        assert server.version() == "2"
        add_version(name_dir, bundle, 4)
        server.wait_for("moved from version 2 to 4")
        (name_dir / "4").rename(name_dir / "4.away")
        server.wait_for("moved from version 4 to 2")
        left_out = [line for line in server.lines() if line.get("message", "").startswith("left out")]
        assert len(left_out) == server.metrics()["serving_failed_reloads_total"] == 1, "not at each look"


def test_damaged_version_is_left_out_at_the_start(name_dir: Path) -> None:
    changed(name_dir / "2")
    with serving(name_dir) as server:
        assert server.version() == "1"
        assert "model.onnx in " in server.wait_for("left out version 2")


def test_named_version_is_never_replaced(name_dir: Path) -> None:
    with serving(name_dir / "1") as server:
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("kept version 1, which bundle= names")
        assert server.version() == "1"


def test_request_that_exceeds_the_grace_time_is_cut_off(bundle: Path) -> None:
    with serving(bundle, "grace_seconds=1") as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n".encode())
            assert server.ask("GET", "/v2/health/live")[0] == 200
            server.process.terminate()
            assert server.process.wait(timeout=30) == 1
        log = server.output.read_text(encoding="utf-8")
        assert log.endswith("error: grace_seconds=1 was too short: 1 requests that had come in were cut off.\n")
