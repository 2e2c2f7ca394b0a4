"""Rules that hold for the template as it lies, before anything is generated."""

import ast
import itertools
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from conftest import PROJECT, QUESTIONS, TEMPLATE, bake_into, ruff
from source import hook, parsed

SOURCE = PROJECT / "src"
MAX_TARGETS = 14
PYTHON = sorted(SOURCE.rglob("*.py"))
OPTION_FILES = sorted(SOURCE.rglob("configs/*/*.yaml"))
VAGUE_NAMES = {"base", "common", "components", "helpers", "misc", "utils"}


def tracked() -> list[Path]:
    """Returns the files that git tracks in this checkout, and new ones that it does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=TEMPLATE, capture_output=True, text=True, check=True).stdout.split("\0")
    return [TEMPLATE / name for name in names if name and (TEMPLATE / name).is_file()]


def test_source_is_plain_python_in_short_functions() -> None:
    for path in PYTHON:
        tree = parsed(path.read_text(encoding="utf-8"))
        assert path.stem not in VAGUE_NAMES, path
        assert ast.get_docstring(tree), f"{path} has no docstring"
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                assert node.end_lineno - node.lineno < 50, f"{path}: {node.name}"
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert not (node.module or "").startswith("digit_classifier"), path


def test_functions_are_typed() -> None:
    for path in PYTHON:
        for node in ast.walk(parsed(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                typed = all(argument.annotation for argument in arguments if argument.arg not in ("self", "cls"))
                assert typed and node.returns is not None, f"{path}: {node.name}"  # noqa: PT018


def test_option_files_are_short() -> None:
    assert len(OPTION_FILES) >= 18
    assert all(len(path.read_text(encoding="utf-8").splitlines()) <= 35 for path in OPTION_FILES)


def test_template_passes_ruff_where_it_lies() -> None:
    ruff("check", "--config", "ruff.toml", cwd=TEMPLATE)
    ruff("format", "--check", "--config", "ruff.toml", cwd=TEMPLATE)


def test_template_and_project_have_the_same_lint(tmp_path: Path) -> None:
    ours = tomllib.loads((TEMPLATE / "ruff.toml").read_text(encoding="utf-8"))
    pyproject = tomllib.loads((bake_into(tmp_path) / "pyproject.toml").read_text(encoding="utf-8"))
    theirs = pyproject["tool"]["ruff"]
    assert all(ours[key] == theirs[key] for key in ("line-length", "target-version"))
    assert {key: ours["lint"][key] for key in theirs["lint"]} == theirs["lint"]


def test_file_names_are_legal_on_windows() -> None:
    devices = hook("pre_gen_project").WINDOWS_DEVICES
    for path in tracked():
        for part in path.relative_to(TEMPLATE).parts:
            assert not re.search(r'[<>:"\\|?*]', part), path
            assert not part.endswith((".", " ")), path
            assert part.split(".")[0].lower() not in devices, path


def test_unwanted_table_names_real_questions_answers_and_files() -> None:
    for (question, answer), patterns in hook("post_gen_project").UNWANTED.items():
        assert answer in ([True, False] if isinstance(QUESTIONS[question], bool) else QUESTIONS[question])
        assert all(any(PROJECT.glob(pattern)) for pattern in patterns)


def test_hooks_use_the_standard_library_alone_and_hold_one_line_of_jinja() -> None:
    for name in ("pre_gen_project", "post_gen_project"):
        text = (TEMPLATE / f"hooks/{name}.py").read_text(encoding="utf-8")
        assert text.count("{{") == 1
        assert "{{" in text.strip().splitlines()[-1]
        imported = {
            alias.name.split(".")[0]
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert imported <= {"json", "keyword", "os", "re", "shlex", "shutil", "subprocess", "sys", "unicodedata"}
        assert not re.search(r"\binput\(|shell=True|urllib|socket", text)


def test_every_question_has_a_human_sentence() -> None:
    asked = {key for key in QUESTIONS if not key.startswith("_")}
    prompts = QUESTIONS["__prompts__"]
    assert set(prompts) == asked
    assert all(sentence.rstrip(")").endswith(("?", "words", "empty", "pip")) for sentence in prompts.values())
    booleans = [key for key in asked if QUESTIONS[key] in ("true", "false", "yes", "no")]
    assert not booleans, "booleans are JSON booleans"


ANSWERS = [{"data_kind": "images"}, {"data_kind": "tables"}, {"vision": True}]  # those that need other packages


@pytest.mark.parametrize("answers", ANSWERS, ids=str)
def test_no_package_may_be_called_like_a_dependency(tmp_path: Path, answers: dict[str, object]) -> None:
    pyproject = tomllib.loads((bake_into(tmp_path, **answers) / "pyproject.toml").read_text(encoding="utf-8"))
    needed = [*pyproject["project"]["dependencies"], *itertools.chain(*pyproject["dependency-groups"].values())]
    names = {re.match(r"[\w-]+", requirement).group().replace("-", "_") for requirement in needed}
    assert names <= set(QUESTIONS["_reserved"])


def test_no_machine_and_no_registry_is_named() -> None:
    forbidden = re.compile(r"pypi\.org|files\.pythonhosted|deb\.debian|registry\.npmjs|/root/|/home/\w|/tmp/\w|/opt/")
    for path in tracked():
        if path == Path(__file__) or path.suffix == ".png":
            continue
        found = forbidden.search(path.read_text(encoding="utf-8"))
        assert found is None, f"{path}: {found}"


@pytest.mark.parametrize("answers", ANSWERS, ids=str)
def test_constraints_lie_within_the_ranges_of_pyproject(tmp_path: Path, answers: dict[str, object]) -> None:
    project = bake_into(tmp_path, **answers)
    pins = dict(
        line.lower().replace("_", "-").split("==")
        for line in (project / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    pyproject = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    needed = [*pyproject["project"]["dependencies"], *itertools.chain(*pyproject["dependency-groups"].values())]
    for requirement in needed:
        name, low, high = re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+),<([\d.]+)(?:; .*)?", requirement).groups()
        assert release(low) <= release(pins[name]) < release(high), requirement
    assert pins["torch"] == ("2.14.1" if "vision" in answers else "2.13.0")


def release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


IN_BOTH_LANGUAGES = {
    "levels of headings": r"^(#+) .+$",
    "questions": r"^\| (`\w+`)",
    "commands": r"^(make .*|python -m .*?)(?:  .*)?$",
    "files and folders": r"^( {0,2}\w[\w/.]*(?: \w+\.py)*)  +\S",
    "options and names": r"`([a-z_]+(?:[=.][\w.=]+)*)`",
    "blocks of commands": r"(?s)```bash\n(.*?)```",
}


@pytest.mark.parametrize("what", IN_BOTH_LANGUAGES)
def test_chinese_readme_is_in_step_with_the_english_one(what: str) -> None:
    """The same, in the same order."""
    readmes = [(TEMPLATE / f"README{language}.md").read_text(encoding="utf-8") for language in ("", ".zh-CN")]
    english, chinese = (re.findall(IN_BOTH_LANGUAGES[what], readme, re.MULTILINE) for readme in readmes)
    assert len(english) >= 2
    assert chinese == english


def test_workflow_runs_commands_of_the_makefile_and_actions_of_a_known_commit() -> None:
    text = (TEMPLATE / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+):.*## ", (TEMPLATE / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    audit = {"python -m pip install pip-audit==2.10.1", "make bake ARGS=--no-input"}
    audit.add("pip-audit --requirement build/digit-classifier/constraints.txt --no-deps --disable-pip")
    commands = {*(f"make {target}" for target in targets), ".ci/run", *audit}
    assert set(re.findall(r"- run: (.*)", text)) <= commands
    for workflow in (text, (PROJECT / ".github/workflows/ci.yml").read_text(encoding="utf-8")):
        assert all(
            re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v[\d.]+", use) for use in re.findall(r"- uses: (.*)", workflow)
        )


def test_makefile_is_short_and_its_sessions_name_tests_that_exist() -> None:
    targets = re.findall(r"^([a-z-]+):.*## ", (TEMPLATE / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(targets) <= MAX_TARGETS
    for path in re.findall(r"(?:e2e|unit|integration)/test_\w+\.py", (TEMPLATE / "tools/sessions.py").read_text()):
        assert (TEMPLATE / "tests/engine" / path).is_file(), path


def test_every_benchmark_is_run_and_has_a_place_for_its_table() -> None:
    tool, page = (
        (TEMPLATE / path).read_text(encoding="utf-8") for path in ("tools/benchmarks.py", "docs/benchmarks.md")
    )
    names, scripts = re.findall(r'^    "(\w+)": Benchmark\(', tool, re.MULTILINE), re.findall(r'"(\w+)\.py', tool)
    assert sorted(names) == sorted(re.findall(r"^<!-- (?!end)(\w+) -->$", page, re.MULTILINE))
    helpers = {"tables", "pairs"}  # what the others share, and the comparison of two commits
    assert {*scripts} == {path.stem for path in (TEMPLATE / "benchmarks").glob("*.py")} - helpers


def test_every_end_to_end_test_of_the_engine_is_run() -> None:
    runners = "".join(
        (TEMPLATE / path).read_text(encoding="utf-8") for path in ("tests/test_project.py", "tools/sessions.py")
    )
    for path in (TEMPLATE / "tests/engine/e2e").glob("test_*.py"):
        assert f'"{path.stem.removeprefix("test_")}"' in runners or path.name in runners, path


# Tests that show what a file of code would do, and that write files as others publish them.
WITH_CODE_IN_FILES = {"test_checkpoints.py", "test_timm.py", "downloads.py"}
MODULES_THAT_RUN_CODE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def dangers(tree: ast.AST) -> list[str]:
    """Returns the calls and imports that would run code that came as data or as text."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [name for name in names if name.split(".")[0] in MODULES_THAT_RUN_CODE]
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in ("eval", "exec", "compile", "os.system", "os.popen", "__import__"):
            found.append(name)
        for keyword in node.keywords:
            argument = f"{keyword.arg}={ast.unparse(keyword.value)}"
            if argument in ("shell=True", "weights_only=False", "allow_pickle=True"):
                found.append(argument)
        if name == "torch.load" and not any(keyword.arg == "weights_only" for keyword in node.keywords):
            found.append("torch.load without weights_only")
        if name == "yaml.load":
            found.append(name)
    return found


def test_nothing_runs_code_that_came_as_data() -> None:
    paths = [path for path in tracked() if path.suffix == ".py" and path.name not in WITH_CODE_IN_FILES]
    assert len(paths) > 150
    for path in paths:
        text = path.read_text(encoding="utf-8")
        text = re.sub(r"^\{%.*%\}$", "", text, flags=re.MULTILINE)
        text = re.sub(r"\{\{ ?cookiecutter\.package_name ?\}\}", "package", text)
        text = re.sub(r"\{\{.*?\}\}", "0", text)
        try:
            tree = ast.parse(text)
        except SyntaxError:  # a test whose blocks exclude one another: its text is searched
            assert not re.search(r"shell=True|weights_only=False|import pickle|\beval\(\"", text), path
            continue
        assert dangers(tree) == [], path


def test_dangers_are_found() -> None:
    code = (
        "import pickle\nfrom joblib import load\neval('1')\ntorch.load(x)\ntorch.load(x, weights_only=False)\n"
        "run(x, shell=True)\nyaml.load(x)\nmodel.eval()\ntorch.load(x, weights_only=True)"
    )
    assert len(dangers(ast.parse(code))) == 7


def test_version_of_the_template_heads_its_changes() -> None:
    versions = re.findall(r"^## (.*)$", (TEMPLATE / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    released = [version for version in versions if not version.endswith(".dev")]
    assert released[0] == QUESTIONS["_template_version"]
    assert len(versions) - len(released) <= 1


def test_decisions_are_numbered_and_dated_and_have_a_status() -> None:
    pages = sorted((TEMPLATE / "docs/decisions").iterdir())
    for number, page in enumerate(pages, start=1):
        assert page.name.startswith(f"{number:04}-"), page.name
        title, _, date, _, status, *_ = page.read_text(encoding="utf-8").splitlines()
        assert title.startswith(f"# {number:04}: "), page.name
        assert re.fullmatch(r"Date: \d{4}-\d\d-\d\d", date), page.name
        replaced_by = re.fullmatch(r"Status: (?:accepted|replaced by (\d{4}))", status).group(1)
        assert replaced_by is None or number != int(replaced_by) <= len(pages), page.name


@pytest.mark.parametrize("answers", [*ANSWERS, {"serving": False, "cluster": "slurm"}], ids=str)
def test_readme_of_a_project_is_short_and_names_files_that_exist(tmp_path: Path, answers: dict[str, object]) -> None:
    project = bake_into(tmp_path, **answers)
    readme = (project / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 220
    table = readme.partition("## Where to find things")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "?" in line]
    assert len(rows) >= 5
    for row in rows:
        paths = re.findall(r"`([\w/]+\.(?:py|yaml))`", row)
        assert 1 <= len(paths) <= 5, row
        assert [path for path in paths if not (project / "src/digit_classifier" / path).is_file()] == []
    for page in [project / "README.md", *project.glob("docs/*.md"), *project.glob("src/*/engine/README.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page}: {link}"
