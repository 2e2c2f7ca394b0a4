"""Removes what was not chosen, notes where the project comes from, and makes it a git repository when asked."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

MESSAGE = "Start from the template"

# (question, answer) -> patterns of what the project does not need then.
UNWANTED = {
    ("license", "Proprietary"): ["LICENSE"],
    ("data_kind", "images"): [
        "docs/pictures/tables-*",
        "src/*/engine/configs/data/table.yaml",
        "src/*/configs/task",
        "src/*/engine/data/table.py",
        "src/*/engine/data/table_splits.py",
        "src/*/models/regressor.py",
        "src/*/models/tabular.py",
        "src/*/engine/serving/form.html",
        "src/*/engine/inference/numbers.py",
        "src/*/engine/inference/tables.py",
    ],
    ("data_kind", "tables"): [
        "docs/pictures/images-*",
        "src/*/configs/data/digits.yaml",
        "src/*/engine/configs/data/image_folder.yaml",
        "src/*/configs/model/cnn.yaml",
        "src/*/engine/data/augmentation.py",
        "src/*/data/digits.py",
        "src/*/engine/data/image_folder.py",
        "src/*/engine/data/pixel_statistics.py",
        "src/*/models/cnn.py",
        "src/*/models/mlp.py",
        "src/*/engine/serving/page.html",
        "src/*/engine/inference/images.py",
    ],
    ("search", False): [
        "src/*/engine/search",
        "src/*/engine/configs/search",
        "src/*/engine/configs/search.yaml",
        "src/*/engine/configs/hydra/search.yaml",
        "docs/search.md",
    ],
    ("serving", False): [
        "src/*/engine/serving",
        "src/*/engine/configs/serve.yaml",
        "deploy/Dockerfile",
        "deploy/Dockerfile.dockerignore",
        "deploy/compose.yaml",
        "deploy/kubernetes",
        "deploy/nginx.conf",
        "deploy/prometheus.yml",
        "deploy/requirements.txt",
        "docs/pictures/*-page.png",
        "docs/serving.md",
    ],
    ("ci", "none"): [".github"],
    ("cluster", "none"): ["deploy/kubernetes", "deploy/slurm.sh", "deploy/trainjob.yaml"],
    ("cluster", "slurm"): ["deploy/kubernetes", "deploy/trainjob.yaml"],
    ("cluster", "kubernetes"): ["deploy/slurm.sh"],
    ("vision", False): [
        "src/*/engine/configs/data/torchvision.yaml",
        "src/*/engine/configs/model/timm.yaml",
        "src/*/engine/data/torchvision_datasets.py",
        "src/*/engine/training/timm_network.py",
    ],
}


def remove_unwanted(answers: dict) -> None:
    for (question, answer), patterns in UNWANTED.items():
        if answers[question] == answer:
            for path in [path for pattern in patterns for path in Path().glob(pattern)]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    for hashes in Path().glob("src/*/engine/engine.sha256"):
        lines = hashes.read_bytes().splitlines(keepends=True)
        hashes.write_bytes(b"".join(line for line in lines if (hashes.parent / line.split()[1].decode()).is_file()))
    deploy = Path("deploy")
    if deploy.is_dir() and not any(deploy.iterdir()):
        deploy.rmdir()


def note_template(answers: dict) -> None:
    """As `cruft create` does, so that `cruft update` works in a project that cookiecutter generated."""
    folder = Path(os.environ.get("TEMPLATE_FOLDER", ""))
    commit = git_says(folder, "rev-parse", "--verify", "HEAD")
    if commit is None or not (folder / ".git").exists():  # a template without a history
        return
    given = answers["_template"]
    template = str(folder) if Path(given).exists() or ":" not in given else None
    template = template or git_says(folder, "config", "--get", "remote.origin.url")
    places = ("_output_dir", "_repo_dir", "_checkout")  # of this machine; cruft notes none of them
    kept = {name: answer for name, answer in answers.items() if name not in places}
    noted = {
        "template": template,
        "commit": commit,
        "checkout": answers.get("_checkout") or None,
        "context": {"cookiecutter": {**kept, "_template": template, "_commit": commit}},
        "directory": None,
    }
    text = json.dumps(noted, ensure_ascii=False, indent=2, separators=(",", ": "))
    Path(".cruft.json").write_text(f"{text}\n", encoding="utf-8")


def git_says(folder: Path, *arguments: str) -> "str | None":
    if shutil.which("git") is None:
        return None
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def init_repository() -> bool:
    """Says so, and returns false, where git is not there or fails."""
    if shutil.which("git") is None:
        print("note: git is not installed, so the project is no repository yet.", file=sys.stderr)
        return False
    # In two steps, because git before 2.28 knows no --initial-branch.
    for command in (["git", "init", "--quiet"], ["git", "symbolic-ref", "HEAD", "refs/heads/main"]):
        if subprocess.run(command, check=False).returncode != 0:
            print(f"note: '{' '.join(command)}' failed; the project is complete without it.", file=sys.stderr)
            return False
    return True


def commit_all() -> None:
    """Makes the first commit where git knows who its author is, so that the first runs know their commit."""
    if git_says(Path(), "-c", "user.useConfigOnly=true", "var", "GIT_AUTHOR_IDENT") is None:
        print("note: git knows no user.name and user.email, so the project is not committed yet.", file=sys.stderr)
        return
    git_says(Path(), "add", "--all")
    if git_says(Path(), "-c", "commit.gpgsign=false", "commit", "--quiet", "--no-verify", "-m", MESSAGE) is None:
        print("note: 'git commit' failed; the project is complete without it.", file=sys.stderr)


def main(answers: dict) -> None:
    remove_unwanted(answers)
    is_new = answers["git_init"] and not Path(".git").exists()  # generated over a project: its branch stays
    has_repository = is_new and init_repository()
    if "_commit" in answers:  # cruft is at work: it notes the template itself, and compares all files and output
        return
    note_template(answers)
    if has_repository:
        commit_all()
    print(f"next: cd {shlex.quote(str(Path.cwd()))} && make setup && make train")


if __name__ == "__main__":
    main(json.loads(r"""{{ cookiecutter | tojson }}"""))
