"""A project knows where it comes from; cruft and `make update` change its engine and leave its owner's files."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from conftest import QUESTIONS, TEMPLATE, files_of, run

BIN = Path(sys.executable).parent
CRUFT, COOKIECUTTER = str(BIN / "cruft"), str(BIN / "cookiecutter")
# The commit from which on the engine has a folder of its own.
FIRST = "76524de442d5ccfaba1910c20f292427338125e8"
IDENTITY = ("-c", "user.name=A User", "-c", "user.email=user@example.com")
PACKAGE = "src/digit_classifier"
ENGINE = f"{PACKAGE}/engine"

# What an owner changes: a file to the text that is added to it.
OWNED = {
    "README.md": "\nWhat this project is for.\n",
    f"{PACKAGE}/train.py": "\n# A line of the owner.\n",
    f"{PACKAGE}/data/digits.py": "\n# A line of the owner.\n",
    f"{PACKAGE}/models/classifier.py": "\n# A line of the owner.\n",
    f"{PACKAGE}/models/mine.py": '"""A network of the owner."""\n',
    f"{PACKAGE}/configs/model/mlp.yaml": "# A line of the owner.\n",
}
REMOVED = f"{PACKAGE}/models/mlp.py"
EDITED = f"{ENGINE}/errors.py"


def commit(folder: Path, message: str) -> None:
    run("git", "add", "--all", cwd=folder)
    run("git", *IDENTITY, "commit", "--quiet", "--allow-empty", f"--message={message}", cwd=folder)


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of two commits: the template as it first had an engine, and as it lies here."""
    folder = tmp_path_factory.mktemp("updates") / "template"
    folder.mkdir()
    archive = folder.parent / "first.tar"
    known = subprocess.run(["git", "cat-file", "-e", FIRST], cwd=TEMPLATE, capture_output=True, check=False)
    if known.returncode:
        pytest.skip("not run: the template's history is not here")
    run("git", "archive", f"--output={archive}", FIRST, cwd=TEMPLATE)
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    run("git", "init", "--quiet", cwd=folder)
    commit(folder, "the first engine")
    for path in folder.iterdir():
        if path.name != ".git":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=TEMPLATE).split("\0"):
        if name and (TEMPLATE / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(TEMPLATE / name, folder / name)
    commit(folder, "as it lies")
    return folder


@pytest.fixture(scope="module")
def newest(template: Path) -> Path:
    """A project of the template as it lies here, committed; its engine has the command `update`."""
    run(COOKIECUTTER, "--no-input", "--output-dir", str(template.parent), str(template), cwd=template.parent)
    project = template.parent / "digit-classifier"
    commit(project, "as it was generated")
    return project


@pytest.fixture
def project(newest: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(newest, tmp_path / "digit-classifier"))


@pytest.fixture(scope="module")
def first_project(template: Path) -> Path:
    """A project of the first engine, with changes of its owner."""
    folder = template.parent / "first"
    run(CRUFT, "create", "--no-input", "--checkout", "HEAD~1", "--output-dir", str(folder), str(template), cwd=TEMPLATE)
    project = folder / "digit-classifier"
    commit(project, "as it was generated")
    for name, text in OWNED.items():
        with (project / name).open("a", encoding="utf-8") as file:
            file.write(text)
    change(project / EDITED, '"""Names the value', '"""An edit. Names the value')
    change(project / "Makefile", "train: .venv/ready ## train a model", "train: .venv/ready ## train my model")
    (project / REMOVED).unlink()
    shutil.rmtree(project / ENGINE / "serving")
    commit(project, "mine")
    return project


@pytest.fixture
def old_project(first_project: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(first_project, tmp_path / "digit-classifier"))


@pytest.fixture
def conflicting(template: Path, tmp_path: Path) -> Path:
    """The template with a third commit: it changes a line that the project's owner changed."""
    clone = tmp_path / "conflicting"
    run("git", "clone", "--quiet", str(template), str(clone), cwd=tmp_path)
    makefile = clone / "{{cookiecutter.project_slug}}/Makefile"
    change(makefile, "train: .venv/ready ## train a model", "train: .venv/ready ## train a better model")
    commit(clone, "a conflict")
    return clone


def update(project: Path, engine: Path, *options: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """`make update` in a project, with the code of this engine; `code` runs before it."""
    lines = [
        "import sys",
        "from pathlib import Path",
        "from digit_classifier.engine import update",
        f"update.__file__ = {str(project / ENGINE / 'update.py')!r}",
        code,
        "update.main()",
    ]
    environment = {**os.environ, "PYTHONPATH": str(engine / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", "\n".join(lines), *options]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


def doctors_line(project: Path) -> str:
    code = "from digit_classifier.engine import doctor; print(doctor.engine())"
    return run(sys.executable, "-c", code, cwd=project, PYTHONPATH="src")


def assert_owned_files_are_untouched(project: Path) -> None:
    for name in OWNED:
        run("git", "diff", "--exit-code", "HEAD", "--", name, cwd=project)
    assert not (project / REMOVED).exists()


def test_cruft_and_cookiecutter_render_the_same(template: Path, newest: Path, tmp_path: Path) -> None:
    run(CRUFT, "create", "--no-input", "--output-dir", str(tmp_path), str(template), cwd=tmp_path)
    theirs = tmp_path / "digit-classifier"
    assert files_of(newest) == files_of(theirs)
    for path in files_of(newest) - {".cruft.json"}:
        assert (newest / path).read_bytes() == (theirs / path).read_bytes(), path
    assert json.loads((newest / ".cruft.json").read_text()) == json.loads((theirs / ".cruft.json").read_text())
    assert "up to date" in run(CRUFT, "check", cwd=newest)


def test_cruft_diff_of_a_new_project_is_empty(template: Path, tmp_path: Path) -> None:
    run(CRUFT, "create", "--no-input", "--output-dir", str(tmp_path), str(template), cwd=TEMPLATE)
    assert run(CRUFT, "diff", "--exit-code", cwd=tmp_path / "digit-classifier") == ""


def test_what_cruft_leaves_alone_are_files_of_the_project(newest: Path) -> None:
    listed = (newest / "pyproject.toml").read_text(encoding="utf-8").split("skip = [")[1].split("]")[0]
    for pattern in filter(None, (line.strip(' ",') for line in listed.splitlines())):
        assert any(newest.glob(pattern)), pattern
        assert "engine" not in pattern


def test_cruft_updates_the_engine_and_leaves_what_is_its_owners(
    old_project: Path, newest: Path, template: Path, conflicting: Path
) -> None:
    # The list of the first commit was shorter than today's.
    old, new = ((folder / "pyproject.toml").read_text(encoding="utf-8") for folder in (old_project, newest))
    section = new[new.index("[tool.cruft]") : new.index("[tool.ruff]")]
    head, tail = old[: old.index("[tool.cruft]")], old[old.index("[tool.ruff]") :]
    (old_project / "pyproject.toml").write_text(head + section + tail, encoding="utf-8")
    commit(old_project, "the list of what is mine")
    command = [CRUFT, "update", "--skip-apply-ask", "--template-path", str(conflicting)]
    done = subprocess.run(command, cwd=old_project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_owned_files_are_untouched(old_project)
    makefile = (old_project / "Makefile").read_text(encoding="utf-8")
    assert "train my model" in makefile
    assert "train a better model" in makefile or (old_project / "Makefile.rej").is_file()
    assert "An edit." in (old_project / EDITED).read_text(encoding="utf-8")
    assert "edited: errors.py (changed)" in doctors_line(old_project)


def test_update_replaces_the_engine_and_makes_a_patch_of_the_rest(
    old_project: Path, newest: Path, conflicting: Path
) -> None:
    done = update(old_project, newest, f"template={conflicting}")
    assert done.returncode == 0, done.stderr
    assert f"which are replaced (git show HEAD:<file> has yours):\n  {EDITED}\n\n" in done.stdout
    assert f"stay away:\n  {ENGINE}/serving\n\n" in done.stdout
    run("git", "diff", "--exit-code", "HEAD", "--", ".", f":!{ENGINE}", ":!.cruft.json", cwd=old_project)
    for name in files_of(newest / ENGINE):
        if name.startswith("serving/"):
            assert not (old_project / ENGINE / name).exists()
        else:
            assert (old_project / ENGINE / name).read_bytes() == (newest / ENGINE / name).read_bytes(), name
    recorded, of_newest = (json.loads((folder / ".cruft.json").read_text()) for folder in (old_project, newest))
    assert recorded["commit"] == run("git", "rev-parse", "HEAD", cwd=conflicting).strip()
    assert recorded["context"]["cookiecutter"].keys() == of_newest["context"]["cookiecutter"].keys()
    assert "as made" in doctors_line(old_project)

    patch = (old_project / "update.patch").read_text(encoding="utf-8")
    assert f"diff --git a/{ENGINE}" not in patch
    assert f"diff --git a/{REMOVED}" not in patch
    assert "  pyproject.toml\n" in done.stdout
    apply = ("git", "apply", "-3", "--include=Makefile", "--include=pyproject.toml", "update.patch")
    applied = subprocess.run(apply, cwd=old_project, capture_output=True, text=True, check=False)
    assert applied.returncode == 1
    assert "Makefile' with conflicts" in applied.stderr
    makefile = (old_project / "Makefile").read_text(encoding="utf-8")
    assert all(words in makefile for words in ("train my model", "train a better model", "<<<<<<<"))
    assert (old_project / "pyproject.toml").read_bytes() == (newest / "pyproject.toml").read_bytes()


def test_update_changes_an_answer_and_tells_what_changed_since(project: Path, newest: Path, conflicting: Path) -> None:
    newest_section = f"## {QUESTIONS['_template_version']}\n"
    change(conflicting / "CHANGELOG.md", newest_section, f"## 9.0.0\n\nUpgrading: rename this.\n\n{newest_section}")
    change(conflicting / "cookiecutter.json", '  "git_init": true', '  "colour": ["red", "blue"],\n  "git_init": true')
    commit(conflicting, "a new version")
    # The project as it was is at hand: it need not be generated again.
    code = f"real = update.generate\nold = Path({str(newest)!r})\n"
    code += "update.generate = lambda *arguments: old if arguments[-1].name == 'old' else real(*arguments)"
    done = update(project, newest, f"template={conflicting}", "serving=false", code=code)
    assert done.returncode == 0, done.stderr
    assert "## 9.0.0\n\nUpgrading: rename this." in done.stdout
    assert newest_section not in done.stdout
    assert "New question: colour=red" in done.stdout
    record = json.loads((project / ".cruft.json").read_text(encoding="utf-8"))
    assert record["template"] == record["context"]["cookiecutter"]["_template"] == str(conflicting)
    assert record["context"]["cookiecutter"]["serving"] is False
    assert not (project / ENGINE / "serving").exists()
    assert "docs/serving.md\n" in done.stdout
    run("git", "apply", "-3", "update.patch", cwd=project)
    assert not (project / "docs/serving.md").exists()
    commit(project, "updated")
    assert "Nothing to do" in update(project, newest).stdout


def test_killed_update_is_undone_by_git(project: Path, newest: Path, conflicting: Path) -> None:
    code = f"update.generate = lambda *_: Path({str(newest)!r})\nupdate.shutil.copy = lambda *_: sys.exit(137)"
    assert update(project, newest, f"template={conflicting}", code=code).returncode == 137
    assert f" D {ENGINE}/errors.py" in run("git", "status", "--porcelain", cwd=project)
    run("git", "checkout", ".", cwd=project)
    assert run("git", "status", "--porcelain", cwd=project) == ""


def test_update_works_in_a_folder_of_a_larger_repository(newest: Path, conflicting: Path, tmp_path: Path) -> None:
    part = tmp_path / "larger/part"
    for folder in (part, tmp_path / "old", tmp_path / "new"):
        shutil.copytree(newest, folder, ignore=shutil.ignore_patterns(".git"))
    change(tmp_path / "new/Makefile", "train a model", "train a better model")
    run("git", "init", "--quiet", cwd=part.parent)
    commit(part.parent, "a project in a folder")
    code = f"update.generate = lambda *arguments: Path({str(tmp_path)!r}) / arguments[-1].name"
    done = update(part, newest, f"template={conflicting}", code=code)
    assert done.returncode == 0, done.stderr
    assert "Edited" not in done.stdout
    run("git", "apply", "-3", "update.patch", cwd=part)
    assert "train a better model" in (part / "Makefile").read_text(encoding="utf-8")


def assert_refused(project: Path, engine: Path, sentence: str, *options: str, code: str = "") -> None:
    """One sentence with exit code 2, and nothing changed."""
    before = {name: (project / name).read_bytes() for name in files_of(project)}
    done = update(project, engine, *options, code=code)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert {name: (project / name).read_bytes() for name in files_of(project)} == before


@pytest.mark.parametrize(
    ("option", "sentence"),
    {
        "nowhere": "'nowhere' is no option",
        "template=nowhere": "the template nowhere cannot be reached (repository 'nowhere'",
        "checkout=nowhere": "has no commit 'nowhere'",
        "serve=true": "'serve' is no question of the template; did you mean 'serving'?",
        "serving=perhaps": "gives no project with these answers: ",
        "email=nobody": "email='nobody' is no address",
    }.items(),
)
def test_refused_options(newest: Path, option: str, sentence: str) -> None:
    assert_refused(newest, newest, sentence, option)


@pytest.mark.parametrize(
    ("code", "sentence"),
    {
        "update.shutil.which = lambda _: None": "git is not installed",
        "update.importlib.util.find_spec = lambda _: None": "cookiecutter is not installed",
    }.items(),
)
def test_update_without_its_tools(newest: Path, code: str, sentence: str) -> None:
    assert_refused(newest, newest, sentence, code=code)


def test_update_of_what_git_could_not_bring_back(project: Path, newest: Path) -> None:
    edited = project / ENGINE / "errors.py"
    edited.write_text("# changed\n", encoding="utf-8")
    assert_refused(project, newest, "there are changes that are not committed")
    run("git", "checkout", ".", cwd=project)
    (project / ENGINE / "mine.py").touch()
    assert_refused(project, newest, "there are changes that are not committed")
    shutil.rmtree(project / ".git")
    assert_refused(project, newest, "this project is no git repository")
    run("git", "init", "--quiet", cwd=project.parent)
    (project.parent / ".gitignore").write_text("*\n", encoding="utf-8")
    assert_refused(project, newest, "there are changes that are not committed")


def test_update_with_a_record_that_does_not_fit(project: Path, newest: Path) -> None:
    record = project / ".cruft.json"
    text = record.read_text(encoding="utf-8")
    commit_hash = json.loads(text)["commit"]
    for damaged, sentence in (
        ("<<<<<<< HEAD\n", ".cruft.json does not hold"),
        ("[]", ".cruft.json does not hold"),
        (text.replace(commit_hash, "0000000"), "has no commit '0000000'"),
        (text.replace('"package_name": "digit_classifier"', '"package_name": "other"'), "src/other/engine is not here"),
    ):
        record.write_text(damaged, encoding="utf-8")
        commit(project, "damaged")
        assert_refused(project, newest, sentence)
    record.unlink()
    commit(project, "lost")
    assert_refused(project, newest, "there is no .cruft.json")
