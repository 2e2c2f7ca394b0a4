"""The generated project's own tests, lint and types, in an environment that its own Makefile made."""

import os
import re
import shutil
import statistics
import sys
from pathlib import Path

import pytest
from conftest import LONG, OTHERWISE, SHORT, TEMPLATE, bake_into, files_of, run

# Kept between runs: the environment in it takes a minute to make, and `make setup` brings it up to date.
HOME = TEMPLATE / "build/tests"

IN_PROJECT = ("dp", "serving")
# Of the project's own tests.
OF_MINUTES = tuple(f"tests/e2e/test_{name}.py" for name in ("benchmark", "formats", "search"))
SKIPS = {
    "there is no GPU here",
    "EXECUTORCH_PYTHON is not set (make executorch makes it)",
    "SCHEMATHESIS is not set (make schemathesis makes it)",
    "Chromium is not installed (make tools)",
    "nginx is not installed (make tools)",
    "g++ is not installed",
}


@pytest.fixture(scope="session")
def default_project() -> Path:
    """Baked with the default answers and set up by `make setup`."""
    project, kept = HOME / "digit-classifier", HOME / "kept-venv"
    if (project / ".venv").exists():
        shutil.rmtree(kept, ignore_errors=True)
        (project / ".venv").rename(kept)
    shutil.rmtree(project, ignore_errors=True)
    bake_into(HOME)
    if kept.exists():
        kept.rename(project / ".venv")
    run("make", "setup", f"PYTHON={sys.executable}", cwd=project)
    run(
        ".venv/bin/python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "pytest-xdist==3.8.0",
        "selenium==4.51.0",
        "pyarrow==26.0.1",
        cwd=project,
    )
    return project


@pytest.fixture(scope="session")
def python(default_project: Path) -> str:
    return str(default_project / ".venv/bin/python")


@pytest.fixture(scope="session")
def other_project(default_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For tables, without a server, and with a package name of 40 letters; it borrows the default one's environment."""
    return bake_into(tmp_path_factory.mktemp("other"), **OTHERWISE)


def run_suite(python: str, project: Path, *tests: str) -> None:
    """Two at a time: most of a test is the start of a process."""
    before = files_of(project / "src") | files_of(project / "tests")
    command = (python, "-m", "pytest", "-q", "-n", "2", "-rs", "--durations=10", *tests)
    printed = run(*command, cwd=project, PYTHONPATH=str(project / "src"))
    print(printed)
    assert re.search(r"\d+ passed", printed)
    assert set(re.findall(r"^SKIPPED .*: (.*)$", printed, re.MULTILINE)) <= SKIPS
    after = files_of(project / "src") | files_of(project / "tests")
    assert {path for path in after - before if "__pycache__" not in path} == set()


def test_default_project_passes_its_own_tests(python: str, default_project: Path, tmp_path: Path) -> None:
    run_suite(python, default_project, *(f"--ignore={path}" for path in OF_MINUTES))
    run("git", "add", "--all", cwd=default_project)
    known = set(run("git", "diff", "--cached", "--name-only", cwd=default_project).splitlines())
    assert known == files_of(bake_into(tmp_path)), "what the commands wrote is ignored by git"


@pytest.fixture(scope="session")
def examined_project(default_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the tests in it that only its makers need; it borrows the environment of the default one."""
    project = bake_into(tmp_path_factory.mktemp("examined"))
    shutil.copytree(TEMPLATE / "tests/in_project", project / "tests/in_project")
    return project


def test_default_project_keeps_its_promises(python: str, examined_project: Path) -> None:
    run_suite(python, examined_project, *(f"tests/in_project/test_{name}.py" for name in IN_PROJECT))


@pytest.mark.story
def test_default_project_keeps_its_promises_case_by_case(python: str, examined_project: Path) -> None:
    run_suite(
        python,
        examined_project,
        *(f"tests/in_project/test_{name}.py" for name in ("slow", "faults", "export", "option_pairs")),
    )
    run_suite(python, examined_project, "tests/in_project/test_ranks.py", *OF_MINUTES)
    killed = (f"tests/e2e/test_{name}.py" for name in ("broken", "killed", "search"))
    run_suite(python, examined_project, "tests/in_project/test_ranks.py", *killed, "-m", "slow")


@pytest.mark.story
def test_exports_keep_their_promises_case_by_case(python: str, examined_project: Path) -> None:
    run_suite(python, examined_project, "tests/in_project/test_export.py", "-m", "slow")
    run_suite(python, examined_project, "tests/in_project/test_edge.py")


@pytest.mark.story
def test_server_keeps_its_promises_case_by_case(python: str, examined_project: Path) -> None:
    run_suite(python, examined_project, "tests/in_project/test_serving.py", "-m", "slow")


def test_project_with_other_answers_passes_its_own_tests(python: str, other_project: Path) -> None:
    """But for those that no answer changes; of the commands, those that use the whole of a checkpoint and a bundle."""
    unit = (f"tests/unit/test_{name}.py" for name in ("checkpoints", "models", "options", "regressor", "table"))
    others = ("tests/integration/test_configs.py", "tests/integration/test_pairs.py", "tests/e2e/test_own_table.py")
    run_suite(python, other_project, *unit, *others)
    commands = "bundle_is_complete or need_only_the_checkpoint"
    run_suite(python, other_project, "tests/e2e/test_commands.py", "-k", commands)


@pytest.mark.story
def test_project_for_tables_passes_its_own_tests(python: str, tmp_path: Path) -> None:
    run_suite(python, bake_into(tmp_path, data_kind="tables"))


@pytest.mark.story
@pytest.mark.parametrize("kind", ["images", "tables"])
def test_guides_and_stories_are_done_word_for_word(python: str, tmp_path: Path, kind: str) -> None:
    project = bake_into(tmp_path, data_kind=kind)
    shutil.copytree(TEMPLATE / "tests/in_project", project / "tests/in_project")
    run_suite(python, project, *(f"tests/in_project/test_{name}.py" for name in ("guides", "option_pairs", "stories")))


@pytest.mark.parametrize(
    ("package", "kind"),
    [(SHORT, "images"), (LONG, "images"), ("digit_classifier", "images"), (LONG, "tables")],
    ids=["2 letters", "40 letters", "default", "tables"],
)
def test_types_are_clean(python: str, tmp_path: Path, package: str, kind: str) -> None:
    project = bake_into(tmp_path, package_name=package, data_kind=kind)
    assert "Success: no issues found" in run(python, "-m", "mypy", "--cache-dir", str(HOME / "mypy"), cwd=project)


@pytest.mark.parametrize("cluster", [pytest.param("slurm", marks=pytest.mark.story), "kubernetes"])
def test_job_files_do_what_they_say(python: str, tmp_path: Path, cluster: str) -> None:
    run_suite(
        python, bake_into(tmp_path, cluster=cluster), "tests/e2e/test_cluster.py", "tests/integration/test_deploy.py"
    )


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
    """Of the job that tests; that of the audit needs a database that is not here."""
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


def test_check_passes(default_project: Path) -> None:
    run("make", "check", cwd=default_project)


@pytest.mark.story
def test_default_model_reaches_its_accuracy(python: str, tmp_path: Path) -> None:
    """Five seeds: the mean is at least 0.98, none is under 0.97."""
    printed = run(python, "-m", "digit_classifier", "train", "-m", "seed=1,2,3,4,5", cwd=tmp_path)
    accuracies = [float(figure) for figure in re.findall(r"test/acc +([\d.]+)", printed)]
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
    assert "Epoch 1/1" in printed
    assert "epoch 1/2" not in printed


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
