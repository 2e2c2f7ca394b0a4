"""Sessions: environments beside the usual one, and the tests that need them: `make session NAME=vision`.

python tools/sessions.py <name> [<name> ...]
"""

import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cookiecutter.main import cookiecutter

TEMPLATE = Path(__file__).parents[1]
BUILD = TEMPLATE / "build"
sys.path.append(str(TEMPLATE / "tests"))

from conftest import DEFAULTS, QUESTIONS  # noqa: E402
from engine_suite import INSTALLED, install  # noqa: E402

PROJECT = str(QUESTIONS["project_name"]).lower().replace(" ", "-")
EXECUTORCH = ("torch==2.13.0", "torchao==0.18.0", "executorch==1.4.1")
HYDRA = "hydra-core==1.4.0rc3"
SCHEMATHESIS = ("schemathesis==4.32.5",)
KSERVE = ("kserve==0.21.0",)
PEERS = {"mlserver": "mlserver==1.7.1", "litserve": "litserve==0.2.19"}
HANDLERS = (
    "fastapi==0.165.0",
    "granian[uvloop]==2.8.9",
    "numpy",
    "onnxruntime==1.32.0",
    "orjson",
    "uvicorn[standard]==0.54.0",
)
OTHER_TEMPLATE = ("torch==2.14.1", "torchvision==0.29.1", "hydra-colorlog==1.2.0", "rootutils==1.0.7")


@dataclass(frozen=True)
class Session:
    """A project of these answers in `build/<name>/`, set up by `set_up`, in which the tests then run."""

    answers: dict[str, object] = field(default_factory=dict)
    tests: tuple[str, ...] = ()
    make: tuple[str, ...] = ()  # targets of the project's Makefile
    checks_types: bool = False  # of the engine, which has files that other projects do not have
    set_up: Callable[[Path], None] = lambda project: run("make", f"PYTHON={sys.executable}", "setup", cwd=project)


def run(*command: str | Path, cwd: Path = TEMPLATE) -> None:
    done = subprocess.run(command, cwd=cwd, check=False)
    if done.returncode:
        sys.exit(f"error: '{' '.join(map(str, command))}' in {cwd} ended with exit code {done.returncode}.")


def pip_install(environment: Path, *packages: str | Path, cwd: Path = TEMPLATE) -> None:
    """Installs packages with pip in an environment, which is made if it is not there."""
    if not (environment / "bin/python").exists():
        venv.create(environment, with_pip=True)
        run(environment / "bin/python", "-m", "pip", "install", "--quiet", "--upgrade", "pip")
    run(environment / "bin/python", "-m", "pip", "install", "--quiet", *packages, cwd=cwd)


def bake(folder: Path, answers: dict[str, object]) -> Path:
    """Generates the project anew; an environment in it stays."""
    project = folder / PROJECT
    for path in project.iterdir() if project.is_dir() else ():
        if path.name != ".venv":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    options = {"no_input": True, "overwrite_if_exists": True, "extra_context": {**answers, "git_init": False}}
    return Path(cookiecutter(str(TEMPLATE), output_dir=str(folder), **options))


def set_up_latest(project: Path) -> None:
    """The newest releases that the ranges of `pyproject.toml` allow."""
    newest = ("--upgrade", "--upgrade-strategy", "eager")
    groups = ("--group", "dev", "--group", "serve", "--group", "sign")
    pip_install(project / ".venv", *newest, "-e", ".", *groups, cwd=project)
    (project / ".venv/ready").touch()


def set_up_hydra(project: Path) -> None:
    """The release candidate of the next Hydra, which the ranges allow and no resolver takes by itself."""
    run("make", f"PYTHON={sys.executable}", "setup", cwd=project)
    groups = ("-c", "constraints.txt", "--group", "sign")
    pip_install(project / ".venv", *groups, cwd=project)
    pip_install(project / ".venv", HYDRA)


def set_up_executorch(project: Path) -> None:
    """For the test of `docs/edge.md` on phones."""
    pip_install(BUILD / "executorch", "--constraint", project / "constraints.txt", *EXECUTORCH)


def set_up_schemathesis(project: Path) -> None:
    """Makes requests from a description of the server."""
    pip_install(BUILD / "schemathesis", *SCHEMATHESIS)


def set_up_kserve(project: Path) -> None:
    """The client of KServe, which needs older packages than a project."""
    pip_install(BUILD / "kserve", *KSERVE)


def set_up_peers(project: Path) -> None:
    """What `benchmarks/serving.py` and `benchmarks/peer.py` measure beside a project."""
    for name, package in PEERS.items():
        pip_install(BUILD / "peers" / name, package, "onnxruntime==1.32.0")
    pip_install(BUILD / "peers/handlers", *HANDLERS)
    pip_install(BUILD / "peers/lightning-hydra-template", *OTHER_TEMPLATE, "-e", project)


# What tells whether a project works with other versions than those of its constraints.txt.
OF_DEPENDENCIES = (
    "tests",
    f"--ignore={INSTALLED}/unit/test_constraints.py",
    *(f"{INSTALLED}/{path}" for path in ("unit", "integration", "e2e/test_commands.py", "e2e/test_serve.py")),
)
SESSIONS = {
    "vision": Session(
        {"vision": True},
        ("tests", f"{INSTALLED}/unit", f"{INSTALLED}/integration/test_pairs.py", f"{INSTALLED}/e2e/test_vision.py"),
        make=("check",),
        checks_types=True,
    ),
    **{
        name: Session({"tracking": name}, ("tests/test_configs.py", f"{INSTALLED}/e2e/test_{name}.py"))
        for name in ("tensorboard", "wandb", "mlflow")
    },
    "latest": Session(tests=OF_DEPENDENCIES, make=("check", "train", "export"), set_up=set_up_latest),
    "hydra": Session(tests=OF_DEPENDENCIES, set_up=set_up_hydra),
    "executorch": Session(set_up=set_up_executorch),
    "schemathesis": Session(set_up=set_up_schemathesis),
    "kserve": Session(set_up=set_up_kserve),
    "peers": Session(set_up=set_up_peers),
}


def main(names: list[str]) -> None:
    unknown = [name for name in names if name not in SESSIONS]
    if unknown or not names:
        sys.exit(f"error: give the names of sessions, as NAME=vision: {', '.join(SESSIONS)}.")
    for name in names:
        session = SESSIONS[name]
        project = bake(BUILD / name, session.answers)
        session.set_up(project)
        for target in session.make:
            run("make", target, "ARGS=", cwd=project)
        for test in groups(session.tests):
            install(
                project, {**DEFAULTS, "project_slug": PROJECT, "package_name": "digit_classifier", **session.answers}
            )
            run(project / ".venv/bin/python", "-m", "pytest", *test, cwd=project)
        if session.checks_types:
            run(project / ".venv/bin/mypy", "--config-file", f"{INSTALLED}/mypy.ini", cwd=project)


def groups(tests: tuple[str, ...]) -> list[list[str]]:
    """The project's own tests and those of the engine, each of which has a conftest.py of its own."""
    engine = [test for test in tests if INSTALLED in test]
    return [group for group in ([test for test in tests if test not in engine], engine) if group]


if __name__ == "__main__":
    main(sys.argv[1:])
