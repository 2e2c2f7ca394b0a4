"""The server under malformed requests, in a browser, behind nginx and in the steps of its image."""

import http.client
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import write_segmenter
from PIL import Image
from server import DATATYPE, INFER, NAME, ONE, Server, request, serving

import digit_classifier as package
from digit_classifier.engine.inference.runtime import read_golden

PROJECT = Path(package.__file__).parents[2]
DEPLOY = PROJECT / "deploy"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def is_open(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def resident_bytes(process: subprocess.Popen[str]) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return 1024 * int(re.search(r"VmRSS:\s+(\d+) kB", status)[1])


def nested(depth: int) -> bytes:
    return b'{"inputs":' + b"[" * depth + b"]" * depth + b"}"


def malformed(chance: random.Random) -> tuple[bytes, dict[str, str]]:
    """Returns a malformed body, and headers."""
    body = request(ONE)
    header = json.dumps({"inputs": [{"name": "x", "datatype": "UINT8", "shape": [1, 1, 8, 8]}]})
    binary = header.replace("8]}", '8], "parameters": {"binary_data_size": 64}}').encode()
    length = {"Inference-Header-Content-Length": str(len(binary))}
    wrong: list[Any] = ["y", None, True, -1, 1e400, float("nan"), 10**40, [[]], {}, [1, "2"], [[1], [2, 3]], 0.5]
    value = chance.choice(wrong)
    cuts = chance.randrange(len(body) - 2)
    return chance.choice(
        [
            (body[:cuts], {}),
            (request(ONE, data=value), {}),
            (request(ONE, data=[value] * 64), {}),
            (request(ONE, shape=value), {}),
            (request(ONE, shape=[value, 1, 8, 8]), {}),
            (request(ONE, shape=[10 ** chance.randrange(2, 30), 1, 8, 8]), {}),
            (request(ONE, datatype=chance.choice(["FP32", "INT64", "BYTES", "uint8", value])), {}),
            (request(ONE, name=value), {}),
            (request(ONE, parameters=chance.choice(["x", 1, [], {"shared_memory_region": "x"}])), {}),
            (json.dumps({"inputs": value}).encode(), {}),
            (json.dumps(value).encode(), {}),
            (nested(chance.randrange(2, 100_000)), {}),
            (b"[" * chance.randrange(1, 1_000_000), {}),
            (b'{"inputs":[' + b"0," * 2_000_000 + b"0]}", {}),
            (binary + bytes(chance.randrange(64)), length),
            (binary + bytes(chance.randrange(65, 1000)), length),
            (binary + bytes(64), {"Inference-Header-Content-Length": chance.choice(["-1", "x", "1", "9" * 5000, "²"])}),
            (chance.randbytes(chance.randrange(1, 4000)), {}),
            (chance.randbytes(64), length),
        ]
    )


def test_thousand_malformed_requests_get_one_sentence_each_and_leave_no_memory(bundle: Path) -> None:
    chance = random.Random(1)
    with serving(bundle) as server:
        for _ in range(200):
            assert server.ask("POST", INFER, request(ONE))[0] == 200
        before = resident_bytes(server.process)
        for number in range(1000):
            body, headers = malformed(chance)
            sent = {name: value.encode().decode("latin-1") for name, value in headers.items()}
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            connection.request("POST", INFER, body, sent)
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            assert 400 <= answer.status < 500, (number, body[:200], headers, content)
            (sentence,) = json.loads(content).values()
            assert len(sentence.splitlines()) == 1
            assert 10 < len(sentence) < 250
            assert sentence.endswith(".")
        for raw in RAW:
            with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connected:
                connected.sendall(raw)
                connected.shutdown(socket.SHUT_WR)
                content = connected.makefile("rb").read()
            assert content == b"" or re.match(rb"HTTP/1.1 4\d\d ", content), (raw, content)
            assert b"Traceback" not in content
        with suppress(BrokenPipeError, ConnectionResetError):  # it need not read to the end before it answers
            assert server.ask("POST", INFER, bytes(100 * 2**20))[0] == 413
        assert server.ask("POST", INFER, request(ONE))[0] == 200
        grown = resident_bytes(server.process) - before
        assert "Traceback" not in server.output.read_text(encoding="utf-8")
    print(f"resident memory grew by {grown / 2**20:.1f} MiB")
    assert grown < 50 * 2**20


RAW = [
    b"GET\r\n\r\n",
    b"\x00\x01\x02\r\n\r\n",
    b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n",
    b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nxxxxx",
    b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 200_000 + b"\r\n\r\n",
    b"GET /" + b"y" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v2/models/%00%ff/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc",
]


@pytest.mark.parametrize("token", ["", "secret"])
def test_headers_of_any_number_and_size_are_refused_before_they_are_kept(bundle: Path, token: str) -> None:
    """Without a bound, 800 headers of 1 MB were answered with 200 and left 890 MiB in use."""
    bombs = {
        "number": b"".join(b"X-%d: a\r\n" % number for number in range(2000)),
        "size": b"X: " + bytes(4 * 2**20).replace(b"\0", b"a") + b"\r\n",
        "both": b"".join(b"X-%d: %s\r\n" % (number, b"a" * 10**6) for number in range(20)),
    }
    start = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n".encode()
    lines = [*(start + bomb for bomb in bombs.values()), b"GET /" + b"a" * 10**6 + b" HTTP/1.1\r\nHost: x\r\n"]
    environment = {"SERVE_TOKEN": token} if token else {}
    with serving(bundle, **environment) as server:
        assert server.ask("POST", INFER, request(ONE), Authorization=f"Bearer {token}")[0] == 200
        before = resident_bytes(server.process)
        most = before
        statuses: list[bytes] = []

        def send(line: bytes) -> None:
            connected = socket.create_connection(("127.0.0.1", server.port), timeout=30)
            with connected, suppress(BrokenPipeError, ConnectionResetError):  # it need not read to the end
                connected.sendall(line)
                statuses.append(connected.makefile("rb").readline())

        threads = [threading.Thread(target=send, args=(lines[number % len(lines)],)) for number in range(200)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            most = max(most, resident_bytes(server.process))
            time.sleep(0.01)
        assert set(statuses) == {b"HTTP/1.1 431 Request Header Fields Too Large\r\n"}
        assert len(statuses) > 150
        assert server.ask("POST", INFER, request(ONE), Authorization=f"Bearer {token}")[0] == 200
        after = resident_bytes(server.process)
    print(f"resident memory grew by {(most - before) / 2**20:.1f} MiB at most, and by {(after - before) / 2**20:.1f}")
    assert most - before < 100 * 2**20
    assert after - before < 50 * 2**20


@pytest.fixture
def browser() -> Iterator[Any]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("not run: Chromium is not installed (make tools)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=900,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    yield found
    found.quit()


def rows_of(browser: Any) -> list[tuple[str, float]]:
    """Returns label and width of each bar, once there are any."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        rows = browser.find_elements("css selector", "#answer tr")
        if rows and rows[0].is_displayed():
            return [
                (row.find_element("tag name", "th").text, row.find_element("css selector", ".bar div").size["width"])
                for row in rows
            ]
        time.sleep(0.05)
    raise AssertionError(browser.find_element("id", "error").text)


def test_page_shows_the_prediction_for_a_picture(browser: Any, bundle: Path, tmp_path: Path) -> None:
    golden, outputs = read_golden(bundle)
    inputs, probabilities = golden["x"], outputs["probabilities"]
    picture = tmp_path / "picture.png"
    Image.fromarray(inputs[0, 0]).save(picture)
    ranking = [str(label) for label in np.argsort(-probabilities[0], kind="stable")]
    with serving(bundle) as server:
        browser.get(f"http://127.0.0.1:{server.port}/")
        until(lambda: browser.find_element("id", "about").text)
        assert browser.find_element("id", "name").text == browser.title == NAME
        assert browser.find_element("id", "about").text == "version 1; 10 labels: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
        shown = [picture.is_displayed() for picture in browser.find_elements("css selector", "img")]
        assert shown == [False, False], "no picture was chosen yet"
        browser.save_screenshot(str(tmp_path / "empty.png"))
        browser.find_element("id", "file").send_keys(str(picture))
        rows = rows_of(browser)
        assert [label for label, _ in rows][:3] == ranking[:3]
        assert browser.find_element("id", "picture").is_displayed()
        assert [width for _, width in rows] == sorted((width for _, width in rows), reverse=True)
        browser.save_screenshot(str(tmp_path / "page.png"))  # to look at what the browser showed
        broken = tmp_path / "broken.png"
        broken.write_bytes(b"no picture")
        browser.find_element("id", "file").send_keys(str(broken))
        end = time.monotonic() + 20
        sentence = "this file cannot be used: it is no picture, or damaged."
        while browser.find_element("id", "error").text != sentence:
            assert time.monotonic() < end
        assert not browser.find_element("id", "picture").is_displayed()
        assert not browser.find_element("id", "answer").is_displayed()
        messages = [entry["message"] for entry in browser.get_log("browser")]
    assert [line for line in messages if "400 (Bad Request)" not in line] == []


def test_page_takes_a_picture_that_is_dropped_and_asks_for_the_token(
    browser: Any, bundle: Path, tmp_path: Path
) -> None:
    golden, outputs = read_golden(bundle)
    inputs, probabilities = golden["x"], outputs["probabilities"]
    file = io.BytesIO()
    Image.fromarray(inputs[1, 0]).save(file, "png")
    drop = """
        const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(arguments[0])], "picture.png", {type: "image/png"}));
        document.getElementById("drop").dispatchEvent(
            new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true}));
    """
    with serving(bundle, SERVE_TOKEN="secret") as server:
        browser.get(f"http://127.0.0.1:{server.port}/")
        browser.execute_script(drop, list(file.getvalue()))
        end = time.monotonic() + 20
        while not browser.find_element("id", "access").is_displayed():
            assert time.monotonic() < end
        browser.find_element("id", "token").send_keys("secret\n")
        assert rows_of(browser)[0][0] == str(probabilities[1].argmax())


def until(condition: Callable[[], Any]) -> Any:
    """Waits for a value that is true, and returns it."""
    end = time.monotonic() + 20
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def test_page_of_several_inputs_shows_a_sample_and_the_mask_for_it(browser: Any, tmp_path: Path) -> None:
    bundle = write_segmenter(tmp_path / "artifacts" / NAME / "1", with_row=True)
    with serving(bundle) as server:
        browser.get(f"http://127.0.0.1:{server.port}/")
        shown = until(lambda: browser.find_element("id", "sample").get_attribute("value"))
        sample = json.loads(shown)
        assert list(sample) == ["picture", "row"]
        browser.find_element("css selector", "#form button").click()
        answer = json.loads(until(lambda: browser.find_element("id", "answer").text))
        assert answer["shares"] == {"paper": 0.375, "ink": 0.375, "smudge": 0.25}
        assert list(answer["colours"]) == ["paper", "ink", "smudge"]
        mask = until(lambda: browser.find_elements("css selector", "#masks img"))[0]
        assert mask.get_attribute("src").startswith("data:image/png;base64,")
        assert until(lambda: mask.get_property("naturalWidth")) == 8
        browser.save_screenshot(str(tmp_path / "arrays.png"))  # to look at what the browser showed
        browser.execute_script("document.getElementById('sample').value = '{\"picture\": [1]}'")
        browser.find_element("css selector", "#form button").click()
        until(lambda: "has the shape [1], not [1, 8, 8]" in browser.find_element("id", "error").text)
        messages = [entry["message"] for entry in browser.get_log("browser")]
    assert [line for line in messages if "400 (Bad Request)" not in line] == []


def test_page_shows_the_mask_for_a_picture(browser: Any, tmp_path: Path) -> None:
    bundle = write_segmenter(tmp_path / "artifacts" / NAME / "1", with_row=False)
    picture = tmp_path / "picture.png"
    Image.fromarray(np.tile(np.linspace(0, 255, 8).astype(np.uint8), (8, 1))).save(picture)
    with serving(bundle) as server:
        browser.get(f"http://127.0.0.1:{server.port}/")
        browser.find_element("id", "file").send_keys(str(picture))
        assert [label for label, _ in rows_of(browser)] == ["paper", "ink", "smudge"]
        assert until(lambda: browser.find_element("id", "mask").get_property("naturalWidth")) == 8
        browser.save_screenshot(str(tmp_path / "mask.png"))


@contextmanager
def nginx(folder: Path, ports: list[int]) -> Iterator[int]:
    """The project's own configuration, with addresses of this machine in the place of the names of services."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        pytest.skip("not run: nginx is not installed (make tools)")
    listening, text = free_port(), (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
    for number, port in enumerate(ports, start=1):
        assert f"server-{number}:8000" in text
        text = text.replace(f"server-{number}:8000", f"127.0.0.1:{port}")
    text = text.replace("listen 8080;", f"listen 127.0.0.1:{listening};")
    places = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in TEMPORARY)
    text = text.replace("http {\n", f"http {{\n{places}", 1)
    (folder / "nginx.conf").write_text(f"pid {folder}/pid;\ndaemon off;\nerror_log {folder}/error.log;\n{text}")
    command = [program, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 20
        while not is_open(listening):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.05)
        try:
            yield listening
        finally:
            process.send_signal(signal.SIGQUIT)
            process.wait(timeout=20)


TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def test_server_that_is_killed_behind_nginx_costs_no_request(bundle: Path, tmp_path: Path) -> None:
    """Two servers under load; one is ended with SIGKILL, and each client still gets its own answer."""
    rng = np.random.default_rng(1)
    samples = rng.integers(0, 256, (64, 1, 8, 8), dtype=np.uint8)
    statuses: list[int] = []
    wrong: list[int] = []
    done = threading.Event()
    with ExitStack() as stack:
        servers = [stack.enter_context(serving(bundle)) for _ in range(2)]
        port = stack.enter_context(nginx(tmp_path, [server.port for server in servers]))
        answer = json.loads(servers[0].ask("POST", INFER, request(samples))[2])
        expected = np.array(answer["outputs"][0]["data"]).reshape(64, 10)

        def ask(first: int) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            index = first
            while not done.is_set():
                connection.request("POST", INFER, request(samples[index : index + 1]))
                response = connection.getresponse()
                content = json.loads(response.read())
                statuses.append(response.status)
                logits = content["outputs"][0]["data"] if response.status == 200 else []
                if not np.allclose(logits, expected[index], atol=1e-4):
                    wrong.append(index)
                index = (index + 8) % 64
            connection.close()

        threads = [threading.Thread(target=ask, args=(first,)) for first in range(8)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(statuses) > 500)
        before = counted(servers[1])
        assert before > 50, "nginx spreads the load"
        servers[0].process.kill()
        killed_at = len(statuses)
        wait_until(lambda: len(statuses) > killed_at + 500)
        done.set()
        for thread in threads:
            thread.join()
        assert set(statuses) == {200}
        assert wrong == []
        assert counted(servers[1]) > before + 400
        assert http_status(f"http://127.0.0.1:{port}/metrics") == 404


def wait_until(holds: Any) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def counted(server: Server) -> float:
    return sum(value for name, value in server.metrics().items() if name.startswith("serving_request_seconds_count"))


def http_status(address: str) -> int:
    try:
        with urllib.request.urlopen(address, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def build_context(context: Path) -> set[str]:
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    return {line[1:] for line in lines if line.startswith("!") and (context / line[1:]).exists()}


@pytest.mark.slow
def test_steps_of_the_image_in_a_fresh_environment(bundle: Path, tmp_path: Path) -> None:
    """Does in folders what Docker would do: COPY and RUN, then the entry point and the HEALTHCHECK."""
    from integration.test_deploy import instructions

    work, venv = tmp_path / "project", tmp_path / "venv"
    work.mkdir()
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    found = instructions((DEPLOY / "Dockerfile").read_text(encoding="utf-8"))
    for word, rest in found:
        if word == "COPY" and "--from" not in rest:
            names = sorted(build_context(PROJECT)) if rest == ". ." else rest.split()[:-1]
            for name in names:
                source = PROJECT / name
                if source.is_dir():
                    shutil.copytree(source, work / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
                else:
                    shutil.copy2(source, work / source.name)
        if word == "RUN":
            step = re.sub("^python ", f"{sys.executable} ", rest.replace("/venv", str(venv)))
            command = ["sh", "-c", step]
            done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
    size = sum(path.stat().st_size for path in venv.rglob("*") if path.is_file() and not path.is_symlink())
    names = {path.name for path in (venv / "lib").glob("python*/site-packages/*")}
    print(f"the environment takes {size / 1e6:.0f} MB")
    assert size < 350e6
    assert not names & {"torch", "lightning", "onnx", "sklearn", "pip", "setuptools"}
    shutil.rmtree(work)
    image, port = dict(found), free_port()
    entrypoint = [venv / "bin/python", *json.loads(image["ENTRYPOINT"])[1:]]
    places = {"paths.artifact_dir=/artifacts": f"paths.artifact_dir={bundle.parents[1]}", "port=8000": f"port={port}"}
    command = [places.get(str(argument), str(argument)) for argument in entrypoint]
    empty = tmp_path / "empty"
    empty.mkdir()
    start = time.monotonic()
    log = (tmp_path / "log").open("w+")
    with subprocess.Popen([*command, "auth=none"], cwd=empty, stdout=log, stderr=log) as process:
        try:
            wait_until(lambda: is_open(port) or process.poll() is not None)
            infer = urllib.request.Request(f"http://127.0.0.1:{port}{INFER}", request(ONE))
            with urllib.request.urlopen(infer, timeout=10) as response:
                assert response.status == 200
            print(f"the first answer came {time.monotonic() - start:.2f} s after the start")
            health = image["HEALTHCHECK"].partition("CMD ")[2].replace("8000", str(port))
            program, *arguments = json.loads(health)
            assert program == "python"
            subprocess.run([venv / "bin/python", *arguments], check=True)
            process.terminate()
            assert process.wait(timeout=20) == 0
            with pytest.raises(subprocess.CalledProcessError):
                subprocess.run([venv / "bin/python", *arguments], check=True, capture_output=True)
        finally:
            process.kill()
            log.close()
    assert list(empty.iterdir()) == [], "a server writes nothing"


@pytest.mark.slow
def test_requests_made_from_a_description_get_what_it_promises(bundle: Path, tmp_path: Path) -> None:
    """Never a 5xx, and no status or body that the description does not name."""
    program = os.environ.get("SCHEMATHESIS")
    if program is None:
        pytest.skip("not run: SCHEMATHESIS is not set (make session NAME=schemathesis)")
    description = Path(__file__).parent / "openapi.yaml"
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    with serving(bundle) as server:
        options = [
            "--url",
            f"http://127.0.0.1:{server.port}",
            "--checks",
            checks,
            "--seed",
            "1",
            "--max-examples",
            "300",
        ]
        phases = ["--phases", "examples,coverage,fuzzing", "--generation-deterministic"]
        command = [program, "run", str(description), *options, *phases, "--continue-on-failure"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert server.ask("POST", INFER, request(ONE))[0] == 200
        assert "Traceback" not in server.output.read_text(encoding="utf-8")


ASKED_BY_KSERVE = """
import asyncio, sys
import numpy as np
from kserve import InferInput, InferRequest, InferenceRESTClient, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

url, name, golden = sys.argv[1], sys.argv[2], np.load(sys.argv[3])


async def main():
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    assert await client.is_server_live(url) is True
    assert await client.is_server_ready(url) is True
    assert await client.is_model_ready(url, name) is True
    assert await client.is_model_ready(url, "another") is False
    x = golden["x"]
    for binary in (False, True):
        tensor = InferInput("x", list(x.shape), sys.argv[4])
        tensor.set_data_from_numpy(x, binary_data=binary)
        outputs = [RequestedOutput("logits", {"binary_data": binary})]
        request = InferRequest(name, [tensor], request_id="asked", request_outputs=outputs)
        answer = await client.infer(url, request, model_name=name)
        assert answer.id == "asked"
        (output,) = answer.outputs
        np.testing.assert_allclose(output.as_numpy(), golden["logits"], atol=1e-5)
    try:
        await client.infer(url, {"inputs": []}, model_name=name)
    except Exception as error:
        assert "'inputs' must be a list of tensors" in str(error), error
    else:
        raise AssertionError("a request without inputs was answered")


asyncio.run(main())
"""


@pytest.mark.slow
def test_client_of_kserve_is_answered(bundle: Path, tmp_path: Path) -> None:
    python = os.environ.get("KSERVE_PYTHON")
    if python is None:
        pytest.skip("not run: KSERVE_PYTHON is not set (make session NAME=kserve)")
    (tmp_path / "ask.py").write_text(ASKED_BY_KSERVE, encoding="utf-8")
    with serving(bundle) as server:
        arguments = [f"http://127.0.0.1:{server.port}", NAME, str(bundle / "golden.npz"), DATATYPE]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [python, str(tmp_path / "ask.py"), *arguments]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
