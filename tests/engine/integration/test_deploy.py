"""The files in `deploy/` name paths, options, addresses and ports that exist."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import {{ cookiecutter.package_name }} as package
from {{ cookiecutter.package_name }}.engine.config import CONFIG_DIRS
from {{ cookiecutter.package_name }}.engine.config.command_line import register_with_hydra
from {{ cookiecutter.package_name }}.engine.config.hydra_versions import VERSION_BASE
from {{ cookiecutter.package_name }}.engine.config.validation import read_options
from {{ cookiecutter.package_name }}.engine.serving.serve import Options
{% if cookiecutter.cluster == "kubernetes" %}
from {{ cookiecutter.package_name }}.engine.serving.metrics import Metrics
{% endif %}

PROJECT = Path(package.__file__).parents[2]
DEPLOY = PROJECT / "deploy"
PORT = 8000
PROBES = ("/v2/health/live", "/v2/health/ready")


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    lines = re.sub(r"^#.*\n", "", dockerfile, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.strip().partition(" ") for line in lines) if word]


def parsed(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


def options_of(arguments: list[str]) -> Options:
    """Reads the options as the command does, which refuses an unknown one."""
    register_with_hydra()
    with initialize_config_dir(str(CONFIG_DIRS[1]), **VERSION_BASE):
        config = compose("serve", [argument for argument in arguments if "=" in argument])
    plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)
    return read_options({str(key): value for key, value in plain.items()}, Options)


@pytest.fixture
def entrypoint() -> list[str]:
    found = dict(instructions((DEPLOY / "Dockerfile").read_text(encoding="utf-8")))["ENTRYPOINT"]
    arguments: list[str] = json.loads(found)
    return arguments


def test_image_is_made_of_what_is_there_and_runs_without_root(entrypoint: list[str]) -> None:
    found = instructions((DEPLOY / "Dockerfile").read_text(encoding="utf-8"))
    bases = [rest.split()[0] for word, rest in found if word == "FROM"]
    assert all(re.fullmatch(r"python:3\.1[1-3]-slim-bookworm", base) for base in bases)
    copied = [name for word, rest in found if word == "COPY" and "--from" not in rest for name in rest.split()[:-1]]
    assert all((PROJECT / name).exists() for name in copied)
    context = [line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"]
    assert all((PROJECT / name).exists() for name in context)
    assert {"deploy/requirements.txt", "pyproject.toml", "README.md", "src"} <= set(context)
    image = dict(found)
    assert int(image["USER"].split(":")[0]) > 0
    assert image["EXPOSE"] == str(PORT)
    assert f"http://127.0.0.1:{PORT}{PROBES[1]}" in image["HEALTHCHECK"]
    assert entrypoint[:4] == ["python", "-m", package.__name__, "serve"]
    options = options_of(entrypoint)
    assert (options.host, options.port) == ("0.0.0.0", PORT)


def test_compose_starts_two_servers_that_nginx_and_prometheus_know(entrypoint: list[str]) -> None:
    services = parsed("compose.yaml")["services"]
    servers = [name for name, service in services.items() if "build" in service]
    assert len(servers) == 2
    for name in servers:
        build = services[name]["build"]
        assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
        options = options_of([*entrypoint, *services[name]["command"]])
        assert options.auth == "none"
        assert float(services[name]["stop_grace_period"].rstrip("s")) > options.grace_seconds
    for service in services.values():
        assert re.search(r":v?\d+\.\d+", service["image"]), "pinned by a tag"
        for volume in service["volumes"]:
            source = (DEPLOY / volume.split(":")[0]).resolve()
            assert source.exists() or source == PROJECT / "artifacts", "which an export makes"
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), "open to this machine alone"
    nginx = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
    assert re.findall(r"^ +server (\S+):(\d+) ", nginx, re.MULTILINE) == [(name, str(PORT)) for name in servers]
    assert [f"listen {port.rpartition(':')[2]};" in nginx for port in services["nginx"]["ports"]] == [True]
    assert services["nginx"]["depends_on"].keys() == set(servers)
    (scraped,) = parsed("prometheus.yml")["scrape_configs"]
    assert scraped["static_configs"][0]["targets"] == [f"{name}:{PORT}" for name in servers]
{% if cookiecutter.cluster == "kubernetes" %}


@pytest.fixture
def manifests() -> dict[str, Any]:
    """Returns the manifests by their kind."""
    text = (DEPLOY / "kubernetes/server.yaml").read_text(encoding="utf-8")
    return {manifest["kind"]: manifest for manifest in yaml.safe_load_all(text)}


def test_kubernetes_runs_the_image_and_asks_its_probes(entrypoint: list[str], manifests: dict[str, Any]) -> None:
    pod = manifests["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    options = options_of([*entrypoint, *container["args"]])
    assert options.bundle == f"/artifacts/{package.__name__}"
    assert options.auth == "auto", "with a token"
    assert container["envFrom"][0]["secretRef"]["name"].endswith("-token")
    assert container["ports"] == [{"name": "http", "containerPort": PORT}]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in PROBES
        assert container[probe]["httpGet"]["port"] == "http"
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > pause + options.grace_seconds
    assert pod["securityContext"]["runAsNonRoot"]
    (volume,) = pod["volumes"]
    assert container["volumeMounts"][0]["name"] == volume["name"]


def test_kubernetes_objects_mean_each_other(manifests: dict[str, Any]) -> None:
    deployment = manifests["Deployment"]
    name, labels = deployment["metadata"]["name"], deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert manifests["Service"]["spec"]["selector"] == labels
    assert manifests["Service"]["spec"]["ports"][0]["targetPort"] == "http"
    assert manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert manifests["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == name
    monitor, rules = yaml.safe_load_all((DEPLOY / "kubernetes/alerts.yaml").read_text(encoding="utf-8"))
    assert monitor["spec"]["selector"]["matchLabels"] == manifests["Service"]["metadata"]["labels"]
    assert monitor["spec"]["endpoints"][0]["port"] == "http"
    metrics = Metrics(with_drift=True)
    metrics.request_seconds("infer", 200).observe(0.001)
    known = {metric.name for metric in metrics.registry.collect()}
    for group in rules["spec"]["groups"]:
        for rule in group["rules"]:
            used = re.findall(r"serving_\w+", rule["expr"])
            assert {re.sub("_(total|count|bucket|sum)$", "", metric) for metric in used} <= known, rule["alert"]
            assert f'job="{name}"' in rule["expr"]


def test_kserve_serves_the_same_artifacts(manifests: dict[str, Any]) -> None:
    model = parsed("kubernetes/inferenceservice.yaml")["spec"]["predictor"]["model"]
    (volume,) = manifests["Deployment"]["spec"]["template"]["spec"]["volumes"]
    assert model["storageUri"] == f"pvc://{volume['persistentVolumeClaim']['claimName']}/"
    assert model["modelFormat"]["name"] == "triton"
    assert model["protocolVersion"] == "v2"
{% endif %}
