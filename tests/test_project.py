"""Tests that run in generated projects: those that ship with it and those of the engine, its lint and its types.

The environment is the one that the project's own Makefile makes.
"""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import DEFAULTS, LONG, OTHERWISE, SHORT, TEMPLATE, bake_into, files_of, run
from cookiecutter.main import cookiecutter
from engine_suite import INSTALLED, install

# Kept between runs: the environment in it takes a minute to make, and `make setup` brings it up to date.
HOME = TEMPLATE / "build/tests"
MAKER_PACKAGES = ("pytest-xdist==3.8.0", "selenium==4.51.0", "pyarrow==26.0.1", "torchdata==0.11.0")

# End-to-end tests that take minutes, and those that `make test` runs.
LONG_E2E = ("benchmark", "broken", "dp", "formats", "matrix", "own_modules", "resumed_options", "search")
SHORT_E2E = (
    *("any_signature", "commands", "endings", "killed", "own_pictures"),
    *("predict", "refusals", "runs", "serve", "serving"),
)
SKIPS = {
    "a control group with less than all cores cannot be made here",
    "there is no GPU here",
    "EXECUTORCH_PYTHON is not set (make session NAME=executorch)",
    "SCHEMATHESIS is not set (make session NAME=schemathesis)",
    "KSERVE_PYTHON is not set (make session NAME=kserve)",
    "Chromium is not installed (make tools)",
    "nginx is not installed (make tools)",
    "g++ is not installed",
}


def e2e(*names: str) -> list[str]:
    return [f"{INSTALLED}/e2e/test_{name}.py" for name in names]


def with_engine_tests(folder: Path, **answers: object) -> Path:
    """A project with the tests of the engine in it."""
    project = bake_into(folder, **answers)
    install(project, {**DEFAULTS, "package_name": "digit_classifier", **answers})
    return project


@pytest.fixture(scope="session")
def default_project() -> Path:
    """Generated with the default answers and set up by `make setup`; its environment outlives the session."""
    project, saved = HOME / "digit-classifier", HOME / "saved-venv"
    if (project / ".venv").exists():
        shutil.rmtree(saved, ignore_errors=True)
        (project / ".venv").rename(saved)
    shutil.rmtree(project, ignore_errors=True)
    bake_into(HOME)
    if saved.exists():
        saved.rename(project / ".venv")
    run("make", "setup", f"PYTHON={sys.executable}", cwd=project)
    run(".venv/bin/python", "-m", "pip", "install", "--quiet", *MAKER_PACKAGES, cwd=project)
    sign = ("-c", "constraints.txt", "--group", "sign")
    run(".venv/bin/python", "-m", "pip", "install", "--quiet", *sign, cwd=project)
    return project


@pytest.fixture(scope="session")
def python(default_project: Path) -> str:
    return str(default_project / ".venv/bin/python")


@pytest.fixture(scope="session")
def engine_project(default_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the default answers, with the tests of the engine; it borrows the environment of the default project."""
    return with_engine_tests(tmp_path_factory.mktemp("engine"))


@pytest.fixture(scope="session")
def other_project(default_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For tables, without a server, and with a package name of 40 letters; it borrows the environment too."""
    return with_engine_tests(tmp_path_factory.mktemp("other"), **OTHERWISE)


def run_suite(python: str, project: Path, *tests: str) -> None:
    """Runs tests in a project; most of a test is the start of a process, so two run at once.

    A worker that has nothing left takes tests from the other: some take a minute.
    """
    before = files_of(project)
    command = (python, "-m", "pytest", "-q", "-n", "2", "--dist=worksteal", "-rs", "--durations=10", *tests)
    printed = run(*command, cwd=project, PYTHONPATH=str(project / "src"))
    print(printed)
    assert re.search(r"\d+ passed", printed)
    for reason in re.findall(r"^SKIPPED .*?: (?:not run: )?(.*)$", printed, re.MULTILINE):
        assert reason in SKIPS or "does not take" in reason or "needs other data" in reason, reason
    added = {path for path in files_of(project) - before if "cache" not in path}
    assert not added, "tests leave something in the project"


def test_shipped_tests_pass_in_the_default_project(python: str, default_project: Path, tmp_path: Path) -> None:
    """Git ignores all that they and the environment write."""
    run_suite(python, default_project, "tests", "--dist=loadfile")
    run("git", "add", "--all", cwd=default_project)
    known = set(run("git", "ls-files", cwd=default_project).splitlines())
    assert known == files_of(bake_into(tmp_path))


def test_shipped_tests_pass_in_a_project_of_other_answers(python: str, other_project: Path) -> None:
    run_suite(python, other_project, "tests", "--dist=loadfile")


def test_engine_passes_its_tests(python: str, engine_project: Path) -> None:
    run_suite(python, engine_project, f"{INSTALLED}/unit", f"{INSTALLED}/integration", *e2e(*SHORT_E2E))


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        (
            "data=torchvision",
            "data needs torchvision, which is not installed, because the project was generated",
        ),
        ("model=timm", "model needs timm, which is not installed"),
        ("data=table", "or generate a project with other answers if it is of a kind that this one was not made for."),
    ],
)
def test_project_without_hooks_says_what_it_lacks(python: str, tmp_path: Path, option: str, sentence: str) -> None:
    cookiecutter(str(TEMPLATE), no_input=True, output_dir=str(tmp_path), accept_hooks=False)
    command = [python, "-m", "digit_classifier", "train", option]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "digit-classifier/src")}
    refused = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert sentence in refused.stderr


@pytest.mark.story
def test_engine_of_other_answers_passes_the_tests_that_differ(python: str, other_project: Path) -> None:
    """Those that no answer changes run in the default project."""
    unit = [f"{INSTALLED}/unit/test_{name}.py" for name in ("checkpoints", "models", "options", "regressor", "table")]
    run_suite(python, other_project, *unit, f"{INSTALLED}/integration/test_pairs.py", *e2e("own_table"))


@pytest.mark.story
def test_engine_passes_its_long_tests(python: str, engine_project: Path) -> None:
    run_suite(python, engine_project, *e2e(*LONG_E2E, "edge", "export", "faults", "fine_tuning", "ranks", "slow"))
    run_suite(python, engine_project, *(f"{INSTALLED}/{kind}" for kind in ("unit", "integration", "e2e")), "-m", "slow")


@pytest.mark.story
def test_engine_of_a_project_for_tables_passes_its_tests(python: str, tmp_path: Path) -> None:
    project = with_engine_tests(tmp_path, data_kind="tables")
    run_suite(python, project, f"{INSTALLED}/unit", f"{INSTALLED}/integration", *e2e("commands", "own_table", "search"))


@pytest.mark.story
@pytest.mark.parametrize("kind", ["images", "tables"])
def test_guides_stories_and_removals_are_done_word_for_word(python: str, tmp_path: Path, kind: str) -> None:
    project = with_engine_tests(tmp_path, data_kind=kind)
    run_suite(python, project, *e2e("guides", "option_pairs", "removal", "stories"))


@pytest.mark.story
@pytest.mark.parametrize("cluster", ["slurm", "kubernetes"])
def test_job_files_do_what_they_say(python: str, tmp_path: Path, cluster: str) -> None:
    project = with_engine_tests(tmp_path, cluster=cluster)
    run_suite(python, project, *e2e("cluster"), f"{INSTALLED}/integration/test_deploy.py")


@pytest.mark.parametrize(
    ("package", "kind"),
    [
        (SHORT, "images"),
        *(
            pytest.param(package, kind, marks=pytest.mark.story)
            for package, kind in ((LONG, "images"), ("digit_classifier", "images"), (LONG, "tables"))
        ),
    ],
)
def test_types_are_clean(python: str, tmp_path: Path, package: str, kind: str) -> None:
    """Those of the owner's part by the project's configuration, those of the engine strictly too."""
    project = with_engine_tests(tmp_path, package_name=package, data_kind=kind)
    command = (python, "-m", "mypy", "--cache-dir")
    checked = run(*command, str(HOME / "mypy"), "--config-file", f"{INSTALLED}/mypy.ini", cwd=project)
    assert "Success: no issues found" in checked
    own = run(*command, str(HOME / "mypy-own"), cwd=project)
    num_engine = len(list((project / "src").glob("*/engine/**/*.py")))
    num_own = len(list((project / "src").rglob("*.py"))) - num_engine
    assert f"Success: no issues found in {num_own} source files" in own


def test_fresh_project_passes_pre_commit_and_stays_as_it_is(python: str, tmp_path: Path) -> None:
    """As after `git init`; it borrows the environment."""
    project = bake_into(tmp_path)
    (project / ".venv").symlink_to(Path(python).parents[1])
    run("git", "add", "--all", cwd=project)
    before = run("git", "status", "--porcelain", cwd=project)
    (command,) = (command for command in ci_commands(project) if "pre-commit" in command)
    run("bash", "-ec", command, cwd=project, PYTHONPATH=str(project / "src"))
    assert run("git", "status", "--porcelain", cwd=project) == before
    assert not run("git", "diff", cwd=project)


def ci_commands(project: Path) -> list[str]:
    """The commands of the job that tests; that of the audit needs a database that is not here."""
    jobs = (project / ".github/workflows/ci.yml").read_text(encoding="utf-8").split("\n  audit:\n")
    assert len(jobs) == 2
    return re.findall(r"- run: (.*)", jobs[0])


@pytest.mark.story
def test_commands_of_the_ci_file_run_word_for_word(tmp_path: Path) -> None:
    """In a checkout with nothing installed."""
    project = bake_into(tmp_path)
    run("git", "add", "--all", cwd=project)
    path = os.pathsep.join(part for part in os.environ["PATH"].split(os.pathsep) if ".venv" not in part)
    assert [command.split()[0] for command in ci_commands(project)] == ["make", ".venv/bin/pre-commit", "make"]
    for command in ci_commands(project):
        print(run("bash", "-ec", command, cwd=project, PATH=path))


@pytest.mark.story
def test_check_passes(default_project: Path) -> None:
    run("make", "check", cwd=default_project)


@pytest.mark.story
def test_sbom_names_what_the_image_of_the_server_holds(default_project: Path) -> None:
    """`cyclonedx-py` holds what it writes against CycloneDX's own schema."""
    run("make", "sbom", f"PYTHON={sys.executable}", cwd=default_project)
    components = json.loads((default_project / "build/sbom.json").read_text(encoding="utf-8"))["components"]
    found = {f"{each['name'].lower().replace('_', '-')}=={each['version']}" for each in components}
    pins = (default_project / "deploy/requirements.txt").read_text(encoding="utf-8")
    assert found == set(re.findall(r"^([a-z0-9.-]+==[^ ;]+)", pins, re.MULTILINE))


@pytest.mark.story
def test_default_model_reaches_its_accuracy(python: str, tmp_path: Path) -> None:
    """Five seeds: the mean is at least 0.98, none is under 0.97."""
    printed = run(python, "-m", "digit_classifier", "train", "-m", "seed=1,2,3,4,5", cwd=tmp_path)
    accuracies = [float(figure) for figure in re.findall(r"^ *acc +.* ([\d.]+) *$", printed, re.MULTILINE)]
    assert len(accuracies) == 5
    print(accuracies)
    assert statistics.mean(accuracies) >= 0.98
    assert min(accuracies) >= 0.97


def test_terminal_gets_a_progress_bar(python: str, tmp_path: Path) -> None:
    """`script` gives the command a terminal of its own."""
    if shutil.which("script") is None:
        pytest.skip("not run: the command 'script' (package bsdutils) is not installed")
    train = f"{python} -m digit_classifier train trainer.max_epochs=2"
    printed = run("script", "-qec", train, "/dev/null", cwd=tmp_path, TERM="xterm-256color", COLUMNS="120")
    assert "\x1b[" in printed
    assert "Epoch 2/2" in printed
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", printed)
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in plain.split("\n")]
    assert [len(line) for line in lines if line.startswith("epoch ")] == [120, 120], "one line of the terminal each"
    assert re.findall(r"epoch (\d)/2 +[\d.]+ s +(?:best)? +val/loss [\d.]+", printed) == ["1", "2"], (
        "they stay above the bar"
    )


@pytest.mark.story
def test_readme_commands_work_word_for_word_in_a_fresh_clone(tmp_path: Path) -> None:
    """Only git, make and Python are there: the clone makes its own environments."""
    clone = tmp_path / "clone"
    run("git", "clone", "--quiet", str(TEMPLATE), str(clone), cwd=tmp_path)
    path = os.pathsep.join(part for part in os.environ["PATH"].split(os.pathsep) if ".venv" not in part)
    blocks = re.findall(r"```bash\n(.*?)```", (clone / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    for command in "\n".join(blocks).splitlines():
        if command and not command.startswith("make test"):
            answers = {"ARGS": "--no-input"} if command.startswith("make bake") else {}
            run("bash", "-ec", command, cwd=clone, PATH=path, **answers)
    bundle = clone / "build/digit-classifier/artifacts/digit_classifier/1"
    assert {"model.onnx", "model.pt", "manifest.json"} <= files_of(bundle)
    assert not run("git", "status", "--porcelain", cwd=clone)
    project = tmp_path / "digit-classifier"
    readme = (project / "README.md").read_text(encoding="utf-8")
    five = re.search(r"```bash\n(make setup.*?)```", readme, re.DOTALL).group(1)
    assert len(five.splitlines()) == 5
    for command in five.splitlines():
        run("bash", "-ec", command, cwd=project, PATH=path)
    assert not [line for line in run("git", "status", "--porcelain", cwd=project).splitlines() if "logs" in line]
