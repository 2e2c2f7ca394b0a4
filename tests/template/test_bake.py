"""Every pair of answers is generated, and each answer alone: the project is complete, clean and free of leftovers."""

import itertools
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import (
    ANSWERS,
    DEFAULTS,
    LONG,
    OTHERWISE,
    PROJECT,
    SHORT,
    TEMPLATE,
    Bake,
    bake_into,
    files_of,
    parse,
    ruff,
)
from engine_suite import INSTALLED, install
from source import PACKAGE, dependencies, imports, is_defined, targets, unwanted

Answers = dict[str, object]
FACTORS = {**ANSWERS, "package_name": ["digit_classifier", SHORT, LONG]}
JOB_COMMANDS = {"slurm": "sbatch deploy/slurm.sh", "kubernetes": "kubectl apply -f deploy/trainjob.yaml"}
FIRST_LINES = {"MIT": "MIT License", "BSD-3-Clause": "BSD 3-Clause License", "Apache-2.0": "Apache License"}


def is_possible(answers: Answers) -> bool:
    return not (answers.get("vision") and answers.get("data_kind") == "tables")


def pairs_of(answers: Answers) -> set[frozenset[tuple[str, object]]]:
    return {frozenset(pair) for pair in itertools.combinations(answers.items(), 2)}


def all_pairs() -> set[frozenset[tuple[str, object]]]:
    """Every two answers to different questions that can be given together."""
    questions = itertools.combinations(FACTORS, 2)
    pairs = (
        {first: one, second: other}
        for first, second in questions
        for one, other in itertools.product(FACTORS[first], FACTORS[second])
    )
    return {frozenset(pair.items()) for pair in pairs if is_possible(pair)}


def covering() -> list[Answers]:
    """Few combinations that contain all pairs: each begins with a missing pair and takes in as many more as it can."""
    missing, found = all_pairs(), []
    while missing:
        answers: Answers = dict(min(missing, key=lambda pair: sorted(map(str, pair))))
        for question in sorted((name for name in FACTORS if name not in answers), key=lambda name: -len(FACTORS[name])):
            candidates = [{**answers, question: answer} for answer in FACTORS[question]]
            possible = [candidate for candidate in candidates if is_possible(candidate)]
            answers = max(possible, key=lambda candidate: len(pairs_of(candidate) & missing))
        missing -= pairs_of(answers)
        found.append({question: answers[question] for question in FACTORS})
    return found


def alone() -> Iterator[Answers]:
    """The defaults, and each other answer beside the defaults of all other questions."""
    yield {}
    for question, answers in FACTORS.items():
        for answer in answers[1:]:
            yield {question: answer}


def test_pairs_are_covered_by_few_combinations() -> None:
    combinations = covering()
    print(f"{len(combinations)} combinations cover {len(all_pairs())} pairs")
    assert set().union(*map(pairs_of, combinations)) >= all_pairs()
    assert all(map(is_possible, combinations))
    assert len(combinations) <= 30


@pytest.mark.parametrize("given", [*alone(), *covering()], ids=lambda given: "-".join(map(str, given.values())))
def test_project_is_complete_and_clean(bake: Bake, given: Answers) -> None:
    answers = {**DEFAULTS, "package_name": FACTORS["package_name"][0], **given}
    package = str(answers["package_name"])
    project = bake(**answers)
    assert files_of(project) == expected_files(answers)
    assert (project / ".git").is_dir() == answers["git_init"]
    engine = project / "src" / package / "engine"
    for path in sorted(project / path for path in files_of(project)):
        if engine not in path.parents and path.suffix != ".png":
            check_text(path)
    check_license_and_python(project, answers)
    check_job_files_are_named(project, str(answers["cluster"]))
    check_engine_is_as_in_the_template(engine)
    check_imports(project / "src" / package)
    check_targets(project / "src" / package)
    check_dependencies(project, project / "src" / package)
    ruff("check", cwd=project)
    ruff("format", "--check", cwd=project)


def expected_files(answers: Answers) -> set[str]:
    """Those of the template but for the patterns that `UNWANTED` names: the table itself is what is claimed."""
    removed = {path for pattern in unwanted(answers) for path in PROJECT.glob(pattern)}
    kept = {
        path.relative_to(PROJECT).as_posix().replace(PACKAGE.name, str(answers["package_name"]))
        for path in PROJECT.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not removed & {path, *path.parents}
    }
    return kept | ({".cruft.json"} if (TEMPLATE / ".git").exists() else set())


def check_text(path: Path) -> None:
    """Nothing of the template is left in the file, and its syntax is right."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".jinja":  # GitHub fills in `${{`
        assert not re.search(r"(?<!\$)\{\{|\{%|%\}", text), path
    assert not re.search(r"\{[{%].*cookiecutter", text), path
    assert text.endswith("\n") or not text, path
    assert not re.search(r"[ \t]+$", text, re.MULTILINE), f"{path} has spaces at the end of a line"
    parse(path)


def check_license_and_python(project: Path, answers: Answers) -> None:
    pyproject = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert pyproject["requires-python"] == f">={answers['python_version']},<3.14"
    if answers["license"] != "Proprietary":
        assert pyproject["license"] == answers["license"]
        first_line = (project / "LICENSE").read_text(encoding="utf-8").splitlines()[0]
        assert FIRST_LINES[str(answers["license"])] in first_line


def check_job_files_are_named(project: Path, cluster: str) -> None:
    """Documentation names the job file of the chosen cluster, and no other."""
    for name, words in {
        "slurm": "sbatch deploy/slurm.sh",
        "kubernetes": "kubectl apply -f deploy/trainjob.yaml",
    }.items():
        for path in ("README.md", "docs/strategies.md"):
            assert (words in (project / path).read_text(encoding="utf-8")) == (name == cluster), (path, name)


def check_engine_is_as_in_the_template(engine: Path) -> None:
    """Its text is the same in every project; what was not chosen is absent, and so are its lines in the hashes."""
    for path in {*engine.rglob("*")} - {engine / "engine.sha256"}:
        source = PACKAGE / "engine" / path.relative_to(engine)
        assert path.is_dir() or not source.exists() or path.read_bytes() == source.read_bytes(), path


def check_imports(package: Path) -> None:
    """Every relative import finds its module and the name in it."""
    for path in package.rglob("*.py"):
        for found in imports(path, package):
            assert found.third_party or is_defined(package, found.module, found.name), f"{path}:{found.line} {found}"


def check_targets(package: Path) -> None:
    """Every class or function of the project that an option file names exists."""
    for path in package.rglob("*.yaml"):
        for target in targets(path, package.name):
            module, _, name = target.rpartition(".")
            assert is_defined(package, tuple(module.split(".")), name), f"{path} names {target}"


def check_dependencies(project: Path, package: Path) -> None:
    """What is imported is a dependency, and what is a dependency is imported or named in an option file."""
    required = dependencies(project / "pyproject.toml")
    used = {found.module[0] for path in package.rglob("*.py") for found in imports(path, package) if found.third_party}
    used -= sys.stdlib_module_names | {package.name}
    imported = {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in used}
    assert imported <= required | OPTIONAL, f"imported but not required: {imported - required - OPTIONAL}"
    named = "\n".join(path.read_text(encoding="utf-8") for path in package.rglob("*.yaml"))
    unused = {name for name in required - imported - INDIRECT if name not in named.lower()}
    assert not unused, f"required but not imported: {unused}"


# The distributions of modules that have another name, or that come with what is required anyway.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "google": "onnx",
    "hydra": "hydra-core",
    "lightning_utilities": "lightning",
    "omegaconf": "hydra-core",
    "prometheus_client": "prometheus-client",
    "python_multipart": "python-multipart",
    "sklearn": "scikit-learn",
    "yaml": "hydra-core",
}
# Installed by those who want what needs it; the sentence of a refusal says so.
OPTIONAL = {"pyarrow", "pillow"}
# Required by others: torch.onnx imports onnxscript.
INDIRECT = {"onnxscript"}


@pytest.mark.parametrize("answers", [{}, OTHERWISE], ids=["default", "other answers"])
def test_engine_tests_are_python_once_they_are_rendered(bake: Bake, answers: Answers) -> None:
    project = bake(**answers)
    install(project, {**DEFAULTS, "package_name": "digit_classifier", **answers})
    for path in (project / INSTALLED).rglob("*.py"):
        assert "cookiecutter." not in path.read_text(encoding="utf-8"), path
        parse(path)


def test_engine_tests_are_clean_once_they_are_rendered(bake: Bake) -> None:
    project = bake()
    install(project, {**DEFAULTS, "package_name": "digit_classifier"})
    ruff("check", INSTALLED, cwd=project)
    ruff("format", "--check", INSTALLED, cwd=project)


def test_defaults_are_the_digit_classifier(bake: Bake) -> None:
    project = bake()
    assert project.name == "digit-classifier"
    assert (project / "src/digit_classifier/train.py").is_file()


def test_commands_of_the_readme_are_those_of_the_makefile(bake: Bake) -> None:
    project = bake()
    readme, makefile = ((project / name).read_text(encoding="utf-8") for name in ("README.md", "Makefile"))
    make_targets = set(re.findall(r"^([a-z]+):.*## ", makefile, re.MULTILINE)) - {"help"}
    assert set(re.findall(r"^\| `make ([a-z]+)` \|", readme, re.MULTILINE)) == make_targets
    recipes = re.sub(r"\$\(BIN\)", ".venv/bin", makefile).replace("$(PACKAGE)", "digit_classifier")
    for plain in re.findall(r"`(\.venv/bin/[^`]*)`", readme):
        assert plain.replace("--quiet ", "") in recipes.replace("--quiet ", "").replace(" $(OPTIONS)", "").replace(
            " $(ARGS)", ""
        ), plain


def test_options_may_follow_a_target_of_make(tmp_path: Path) -> None:
    project = bake_into(tmp_path)
    (project / ".venv").mkdir()
    (project / ".venv/ready").touch()
    typed = {
        ("model=mlp", "trainer.max_epochs=3"): "train  trainer.max_epochs=3 model=mlp",
        ("ARGS=model=mlp seed=3", "tags=[a b]", "PYTHON=python3"): "train model=mlp seed=3 tags=[a\\ b]",
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # of `make test`
    for words, command in typed.items():
        printed = subprocess.run(
            ["make", "-n", "train", *words], cwd=project, env=environment, capture_output=True, text=True, check=True
        )
        assert printed.stdout.strip() == f".venv/bin/python -m digit_classifier {command}"


@pytest.mark.parametrize("name", ["Ada", None])
def test_new_project_is_committed_if_git_knows_a_name(
    name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL", "EMAIL"):
        monkeypatch.delenv(variable, raising=False)
    settings = tmp_path / "settings"
    settings.write_text(f"[user]\nname = {name}\nemail = a@example.org\n" if name else "", encoding="utf-8")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    project = bake_into(tmp_path, git_init=True)

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=project, capture_output=True, text=True, check=False).stdout

    assert git("log", "--format=%an").split() == ([name] if name else [])
    assert bool(git("status", "--porcelain")) == (name is None)


def test_project_is_usable_without_hooks(tmp_path: Path) -> None:
    command = [Path(sys.executable).parent / "cookiecutter", TEMPLATE, "--no-input", "--accept-hooks", "no"]
    subprocess.run([*command, "--output-dir", tmp_path], check=True, capture_output=True)
    ruff("check", cwd=tmp_path / "digit-classifier")


def count_lines(*paths: Path) -> int:
    """Non-empty lines: the formatter adds empty ones."""
    return sum(bool(line.strip()) for path in paths for line in path.read_text(encoding="utf-8").splitlines())


# What the design allows, and what there is where that does not hold yet: neither may be raised.
BOUNDS = {
    "owner's lines": 700,
    "owner's files": 50,
    "engine's lines": 7500,
    "engine's lines without serving and search": 5500,
    "lines of shipped tests": 600,
    "files": 175,
}
EXCEEDED = {"engine's lines": 14107, "engine's lines without serving and search": 11786, "files": 232}


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    project = bake_into(tmp_path_factory.mktemp("default"))
    without = {question: False for question in ("serving", "search") if question in ANSWERS}
    lean = bake_into(tmp_path_factory.mktemp("lean"), **without)
    package = project / "src/digit_classifier"
    engine, own = package / "engine", [path for path in package.rglob("*") if path.is_file()]
    own = [path for path in own if engine not in path.parents]
    return {
        "owner's lines": count_lines(*(path for path in own if path.suffix == ".py")),
        "owner's files": len(own),
        "engine's lines": count_lines(*engine.rglob("*.py")),
        "engine's lines without serving and search": count_lines(*(lean / "src").glob("*/engine/**/*.py")),
        "lines of shipped tests": count_lines(*(project / "tests").rglob("*.py")),
        "files": len(files_of(project)),
    }


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.xfail(strict=True, reason=f"{EXCEEDED[name]}"))
        if name in EXCEEDED
        else name
        for name in BOUNDS
    ],
)
def test_size_is_within_its_bound(sizes: dict[str, int], name: str) -> None:
    print(f"{name}: {sizes[name]}")
    assert sizes[name] <= BOUNDS[name]


@pytest.mark.parametrize("name", EXCEEDED or [pytest.param("", marks=pytest.mark.skip("every bound holds"))])
def test_size_beyond_its_bound_does_not_grow(sizes: dict[str, int], name: str) -> None:
    assert sizes[name] <= EXCEEDED[name]
