"""Replaces the engine by the template's newest, and writes the template's other changes to `update.patch`.

python -m <package> update [template=<folder or address>] [checkout=<branch, tag or commit>] [<question>=<answer> ...]

The project is generated twice with the answers in `.cruft.json`: from the template's commit recorded there, and from
its newest one (or `checkout`). Only then do files of the project change; `git checkout .` brings all of them back.
"""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from .doctor import release
from .errors import UserError, nearest

PACKAGE = __name__.partition(".")[0]
RECORD = ".cruft.json"
PATCH = "update.patch"
PLACES = ("template", "checkout")


class Tree(NamedTuple):
    """A tree of git, and its files: path to mode and hash."""

    name: str
    files: dict[str, str]


class Trees(NamedTuple):
    """The project as generated at the recorded commit, as generated now, and as committed; and where its engine is."""

    old: Tree
    new: Tree
    head: Tree
    engine: str

    def edited(self) -> list[str]:
        """Returns the files of the engine that are not as they were generated."""
        paths = differing(self.old, self.head)
        return [path for path in paths if path.startswith(f"{self.engine}/") and path in self.head.files]

    def removed(self) -> set[Path]:
        """Returns the folders that the project had and removed, such as the engine's `serving/`."""
        old, head = ({folder for path in tree.files for folder in Path(path).parents} for tree in (self.old, self.head))
        return old - head

    def engine_files(self) -> list[str]:
        """Returns the files of the new engine, without the folders that the project removed."""
        removed = self.removed()
        paths = (path for path in self.new.files if path.startswith(f"{self.engine}/"))
        return [path for path in paths if not removed.intersection(Path(path).parents)]

    def patchable(self) -> tuple[list[str], list[str]]:
        """Returns the files outside the engine that the template changed: those for the patch, and those left alone.

        `git apply` takes a patch as a whole or not at all, so a file that is gone cannot be part of it.
        """
        patched: list[str] = []
        left_alone: list[str] = []
        for path in differing(self.old, self.new):
            before, after, here = (tree.files.get(path) for tree in self[:3])
            if path == RECORD or path.startswith(f"{self.engine}/") or here == after:
                continue
            is_gone = before is not None and here is None
            is_edited_but_dropped = after is None and here != before
            (left_alone if is_gone or is_edited_but_dropped else patched).append(path)
        return patched, left_alone


def differing(one: Tree, other: Tree) -> list[str]:
    paths = one.files.keys() | other.files.keys()
    return sorted(path for path in paths if one.files.get(path) != other.files.get(path))


def main() -> None:
    words = sys.argv[1:]
    if "-h" in words or "--help" in words:
        print((__doc__ or "").replace("<package>", PACKAGE).strip())
        return
    try:
        update(Path(__file__).resolve().parents[3], words)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("error: interrupted; git checkout . brings back what changed, if anything did.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def update(project: Path, words: list[str]) -> None:
    """Updates the project in this folder; `words` are the options of the command."""
    options = parse(words)
    check_repository(project)
    record = read_record(project)
    answers = record["context"]["cookiecutter"]
    engine = f"src/{answers['package_name']}/engine"
    if not (project / engine).is_dir():
        raise UserError(f"{engine} is not here: {RECORD} has to record the package's name under 'package_name'.")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        template, address = clone(options.pop("template", record["template"]), folder / "template")
        checkout = options.pop("checkout", None)
        commit, recorded = (commit_of(template, ref, address) for ref in (checkout or "HEAD", record["commit"]))
        check_questions(template, commit, options)
        if commit == recorded and not options:
            print(f"Nothing to do: the project is at commit {commit[:7]} of {address}.")
            return
        new = generate(template, commit, answers | options, folder / "new")
        old = generate(template, recorded, answers, folder / "old")
        if not (new / engine).is_dir():
            raise UserError(f"commit {commit[:7]} of {address} has no {engine}: it is no version to update to.")
        trees = Trees(write_tree(old, project), write_tree(new, project), head_tree(project), engine)
        new_record = json.loads((new / RECORD).read_text(encoding="utf-8"))
        new_record |= {"template": address, "checkout": checkout}
        new_answers = new_record["context"]["cookiecutter"]
        new_answers |= {"_template": address, "_commit": commit}
        changelog = git("show", f"{commit}:CHANGELOG.md", folder=template)
        patch = report_changes(project, trees)
        report_requests(changelog, answers, new_answers)
        change_project(project, new, trees, patch, new_record)
    print(f"\n{engine} is that of commit {commit[:7]} of {address}.")
    print(f"next: make setup check test, then git commit; git checkout . && git clean -fd {engine} undoes it")


def change_project(project: Path, generated: Path, trees: Trees, patch: bytes, record: dict[str, Any]) -> None:
    """Writes the patch, the engine and last the record: an update that was killed before that has not taken place."""
    (project / PATCH).unlink(missing_ok=True)
    if patch:
        (project / PATCH).write_bytes(patch)
    shutil.rmtree(project / trees.engine)
    for path in trees.engine_files():
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(generated / path, project / path)
    text = json.dumps(record, ensure_ascii=False, indent=2, separators=(",", ": "))
    (project / RECORD).write_text(f"{text}\n", encoding="utf-8")


def parse(words: list[str]) -> dict[str, str]:
    for word in words:
        if "=" not in word or word.startswith("="):
            raise UserError(f"'{word}' is no option: write <name>=<value>, as in checkout=main.")
    return dict(word.split("=", 1) for word in words)


def check_repository(project: Path) -> None:
    """Refuses what git could not bring back."""
    if shutil.which("git") is None:
        raise UserError("git is not installed: an update needs it, to compare and to undo.")
    if importlib.util.find_spec("cookiecutter") is None:
        raise UserError("cookiecutter is not installed: pip install -c constraints.txt -e . --group dev")
    inside = subprocess.run(["git", "rev-parse", "--show-toplevel"], cwd=project, capture_output=True, check=False)
    if inside.returncode:
        raise UserError("this project is no git repository: run git init, git add --all and git commit first.")
    is_tracked = git("ls-files", "--", f"src/{PACKAGE}/engine", folder=project)  # not in a folder that is ignored
    if not is_tracked or git("status", "--porcelain", "--untracked-files=all", "--", ".", folder=project):
        raise UserError("there are changes that are not committed: git commit or git stash -u them first.")


def read_record(project: Path) -> dict[str, Any]:
    if not (project / RECORD).is_file():
        raise UserError(f"there is no {RECORD} in {project}: without it nobody knows the template and the answers.")
    try:
        record = json.loads((project / RECORD).read_text(encoding="utf-8"))
        needed = [record["template"], record["commit"], record["context"]["cookiecutter"]["package_name"]]
    except (ValueError, KeyError, TypeError):
        needed = []
    if not needed or not all(isinstance(name, str) for name in needed):
        raise UserError(f"{RECORD} does not hold the template, its commit and the answers: take it from git again.")
    return dict(record)


def clone(template: str, folder: Path) -> tuple[Path, str]:
    """Clones the template, and returns the clone with the address that will be recorded."""
    address = str(Path(template).resolve()) if Path(template).exists() else template
    command = ["git", "clone", "--quiet", "--no-checkout", "--", address, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = last_line(done.stderr).removeprefix("fatal: ")
        raise UserError(f"the template {address} cannot be reached ({reason}): give template=<folder or address>.")
    return folder, address


def commit_of(template: Path, ref: str, address: str) -> str:
    for name in (f"origin/{ref}", ref):
        command = ["git", "rev-parse", "--quiet", "--verify", "--end-of-options", f"{name}^{{commit}}"]
        done = subprocess.run(command, cwd=template, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout.strip()
    raise UserError(f"the template {address} has no commit '{ref}': give another with template= or checkout=.")


def check_questions(template: Path, commit: str, options: dict[str, str]) -> None:
    names = json.loads(git("show", f"{commit}:cookiecutter.json", folder=template))
    questions = [name for name in names if not name.startswith("_")]
    for name in options:
        if name not in questions:
            raise UserError(f"'{name}' is no question of the template; {nearest(name, [*questions, *PLACES])}")


def generate(template: Path, commit: str, answers: dict[str, Any], folder: Path) -> Path:
    """Generates the project from a commit of the template, and returns its folder."""
    git("checkout", "--quiet", "--force", "--detach", commit, folder=template)
    folder.mkdir()
    config = folder / "cookiecutter.json"  # instead of the user's own: it would answer questions and keep a replay
    config.write_text(json.dumps({"cookiecutters_dir": str(folder), "replay_dir": str(folder / "replay")}))
    words = [f"{name}={answer}" for name, answer in answers.items() if not name.startswith("_")]
    command = [sys.executable, "-m", "cookiecutter", "--no-input", "--config-file", str(config)]
    command += ["--output-dir", str(folder), str(template), *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8", check=False)
    found = list(folder.glob(f"*/{RECORD}"))
    if done.returncode or len(found) != 1:
        lines = (done.stderr + done.stdout).splitlines()
        refusals = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        reason = " ".join(refusals) or last_line(done.stderr)
        raise UserError(f"commit {commit[:7]} of the template gives no project with these answers: {reason}")
    return found[0].parent


def write_tree(generated: Path, project: Path) -> Tree:
    """Writes the generated files into the project's objects, where a three-way merge looks for them."""
    places = {
        "GIT_DIR": git("rev-parse", "--absolute-git-dir", folder=project).strip(),
        "GIT_WORK_TREE": str(generated),
        "GIT_INDEX_FILE": str(generated.parent / "index"),
    }
    git("add", "--all", "--force", ".", folder=generated, **places)
    return list_tree(git("write-tree", folder=generated, **places).strip(), project)


def head_tree(project: Path) -> Tree:
    """Returns the project as it is committed; it may be a folder of a larger repository."""
    prefix = git("rev-parse", "--show-prefix", folder=project).strip()
    return list_tree(git("rev-parse", f"HEAD:{prefix}", folder=project).strip(), project)


def list_tree(name: str, project: Path) -> Tree:
    listed = git("ls-tree", "-r", "-z", "--full-tree", name, folder=project).split("\0")
    entries = (entry.split("\t", 1) for entry in listed if entry)
    return Tree(name, {path: mode_and_hash for mode_and_hash, path in entries})


def report_changes(project: Path, trees: Trees) -> bytes:
    """Prints what the update does to the project's files, and returns a patch for those outside the engine."""
    removed = [folder.as_posix() for folder in trees.removed() if folder.as_posix().startswith(f"{trees.engine}/")]
    patched, left_alone = trees.patchable()
    print_files("Edited files of the engine, which are replaced (git show HEAD:<file> has yours):", trees.edited())
    print_files("Folders of the engine that were removed here, and stay away:", sorted(removed))
    print_files("Changed in the template but removed here, or removed there but edited here; left alone:", left_alone)
    if not patched:
        return b""
    top = Path(git("rev-parse", "--show-toplevel", folder=project).strip())
    prefix = git("rev-parse", "--show-prefix", folder=project).strip()
    command = ["diff-tree", "-r", "--no-renames", f"--src-prefix=a/{prefix}", f"--dst-prefix=b/{prefix}"]
    files = [trees.old.name, trees.new.name, "--", *(f":(literal){path}" for path in patched)]
    counts = git(*command, "-z", "--numstat", *files, folder=top).split("\0")
    rows = [count.split("\t") for count in counts if count]
    print_files(
        f"Other changes of the template: git apply -3 {PATCH} takes all, --include=<file> one:",
        [f"{'+' + added:>6} {'-' + removed_lines:>6}  {prefix}{path}" for added, removed_lines, path in rows],
    )
    return git(*command, "-p", "--binary", "--full-index", *files, folder=top).encode("utf-8", "surrogateescape")


def print_files(heading: str, lines: list[str]) -> None:
    if lines:
        print(heading, *lines, sep="\n  ", end="\n\n")


def report_requests(changelog: str, old_answers: dict[str, Any], answers: dict[str, Any]) -> None:
    """Prints what the template asks of the owner: its new questions, and the newer sections of its CHANGELOG."""
    for name in sorted(answers.keys() - old_answers.keys()):
        if not name.startswith("_"):
            print(f"New question: {name}={answers[name]} is the answer (another: make update ARGS={name}=...).")
    version = old_answers.get("_template_version", "0")
    sections = re.split(r"(?m)^(?=## )", changelog)[1:]
    newer = [section for section in sections if release(section.split()[1]) > release(version)]
    if newer:
        print(f"What changed in the template since {version}:\n\n{''.join(newer).rstrip()}")


def git(*arguments: str, folder: Path, **environment: str) -> str:
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, check=False)
    if done.returncode:
        reason = last_line(done.stderr.decode("utf-8", "replace"))
        raise UserError(f"git {arguments[0]} failed ({reason}); nothing was changed.")
    return done.stdout.decode("utf-8", "surrogateescape")


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1]


if __name__ == "__main__":
    main()
