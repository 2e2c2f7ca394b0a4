"""Writes the project's constraints.txt and the hashes of its server's image.

Resolves what a project needs with each answer that brings packages of its own, in the newest versions that its
`pyproject.toml` allows, for the oldest and the newest Python. Nothing is installed.
"""

import itertools
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from cookiecutter.main import cookiecutter

TEMPLATE = Path(__file__).parents[1]
PROJECT = TEMPLATE / "{{cookiecutter.project_slug}}"
UV = Path(sys.executable).parent / "uv"
PYTHONS = ("3.11", "3.13")
DEFAULTS = {"data_kind": "images", "tracking": "csv", "vision": False}
VARIANTS = [
    *(
        {**DEFAULTS, "data_kind": kind, "tracking": tracking}
        for kind, tracking in itertools.product(("images", "tables"), ("csv", "tensorboard", "wandb", "mlflow"))
    ),
    {**DEFAULTS, "vision": True},
]
# What is held back, and for which answers: torch, whose build for the CPU installs fast, to what torchvision was built
# for; SQLAlchemy, which mlflow warns of.
HELD = {
    "torch==2.13.0": {"vision": False},
    "torch==2.14.1": {"vision": True},
    "torchvision==0.29.1": {"vision": True},
    "sqlalchemy<2.1": {"tracking": "mlflow"},
}
# Of CUDA builds of torch: a project takes them as torch brings them.
OF_CUDA = re.compile(r"nvidia-|cuda-|triton==")
HEADER = """# The exact versions that this project was tested with, for pip and uv: -c constraints.txt
# `make constraints` takes newer ones.
"""


def rendered(answers: dict, folder: Path) -> Path:
    """Without hooks: `pyproject.toml` and `constraints.txt` are all that is read of it."""
    options = {"no_input": True, "accept_hooks": False, "extra_context": answers}
    return Path(cookiecutter(str(TEMPLATE), output_dir=str(folder), **options))


def resolved(answers: dict, python: str, known: dict[str, str], folder: Path) -> dict[str, str]:
    """Names to versions; `known` are held to."""
    project = rendered(answers, folder)
    held = [pin for pin, where in HELD.items() if where.items() <= answers.items()]
    limits = folder / "limits.txt"
    limits.write_text("\n".join([*held, *(f"{name}=={version}" for name, version in known.items())]))
    groups = ["--group", "dev", "--group", "serve", "--group", "sign"]
    options = [*groups, "--constraints", str(limits), "--python-version", python]
    lines = compiled(["pyproject.toml", *options, "--python-platform", "x86_64-manylinux_2_28"], project)
    return dict(line.split("==") for line in lines if "==" in line and not OF_CUDA.match(line))


def compiled(arguments: list[str], folder: Path) -> list[str]:
    command = [UV, "pip", "compile", "--quiet", "--upgrade", "--no-annotate", "--no-header", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: {' '.join(done.stderr.split())}")
    return done.stdout.splitlines()


def condition(wanted: list[dict], others: list[dict]) -> str:
    """In Jinja, what holds of the wanted answers and of no others, with as few questions as can be."""
    if found := conjunction(wanted, others):
        return found
    if found := conjunction(others, wanted):
        return f"not ({found})"
    sys.exit(f"error: no condition tells {wanted} from {others}: split the package's pin by hand.")


def conjunction(wanted: list[dict], others: list[dict]) -> str:
    for number in range(1, len(DEFAULTS) + 1):
        for questions in itertools.combinations(DEFAULTS, number):
            chosen = [dict.fromkeys(variant[question] for variant in wanted) for question in questions]
            pairs = list(zip(questions, chosen, strict=True))
            if not any(all(variant[question] in answers for question, answers in pairs) for variant in others):
                return " and ".join(itertools.starmap(term, pairs))
    return ""


def term(question: str, answers: dict) -> str:
    known = dict.fromkeys(variant[question] for variant in VARIANTS)
    if question == "vision":
        return "cookiecutter.vision" if True in answers else "not cookiecutter.vision"
    left = [answer for answer in known if answer not in answers]
    if len(answers) == 1:
        return f'cookiecutter.{question} == "{next(iter(answers))}"'
    if len(left) == 1:
        return f'cookiecutter.{question} != "{left[0]}"'
    words = ", ".join(f'"{answer}"' for answer in answers)
    return f"cookiecutter.{question} in ({words})"


def text_of(versions: list[dict[str, str]]) -> str:
    """What all have in common, then a block for each set of answers."""
    everywhere, blocks = [], {}
    for name in sorted(set().union(*versions)):
        for version in sorted({found[name] for found in versions if name in found}):
            wanted = [variant for variant, found in zip(VARIANTS, versions, strict=True) if found.get(name) == version]
            others = [variant for variant in VARIANTS if variant not in wanted]
            lines = blocks.setdefault(condition(wanted, others), []) if others else everywhere
            lines.append(f"{name}=={version}")
    text = HEADER + "\n".join(everywhere) + "\n"
    for words, lines in blocks.items():
        text += f"{{% if {words} %}}\n" + "\n".join(lines) + "\n{% endif %}\n"
    return text


def hashes(folder: Path) -> str:
    """Of every file of what the server's image holds, on any machine."""
    (folder / "image").mkdir()
    project = rendered(DEFAULTS, folder / "image")
    options = ["--group", "serve", "--constraints", "constraints.txt", "--universal", "--generate-hashes"]
    text = "\n".join(compiled([*options, "--python-version", PYTHONS[0]], project))
    blocks = re.split(r"\n(?=\S)", text)
    of_pictures = '{{% if cookiecutter.data_kind == "images" %}}\n{}\n{{% endif %}}'
    blocks = [of_pictures.format(block) if block.startswith("pillow==") else block for block in blocks]
    head = "# What the server's image is made of, with the hash of every file: made by 'make constraints'."
    return "\n".join([head, *blocks]) + "\n"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        versions: list[dict[str, str]] = []
        for number, answers in enumerate(VARIANTS):
            folder = Path(name, str(number))
            found: dict[str, str] = {}
            for python in PYTHONS:
                (folder / python).mkdir(parents=True)
                found |= resolved(answers, python, found, folder / python)
            print(f"{len(found)} packages  {' '.join(map(str, answers.values()))}", flush=True)
            versions.append(found)
        (PROJECT / "constraints.txt").write_text(text_of(versions), encoding="utf-8")
        (PROJECT / "deploy/requirements.txt").write_text(hashes(Path(name)), encoding="utf-8")
    print("next: git diff, make test-all")


if __name__ == "__main__":
    main()
