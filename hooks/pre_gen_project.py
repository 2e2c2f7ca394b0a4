"""Refuses answers that could not give a working project, each in one sentence, before a file is written."""

import json
import keyword
import re
import sys
import unicodedata

# Folder names that Windows keeps for devices.
WINDOWS_DEVICES = {
    "aux",
    "con",
    "nul",
    "prn",
    *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10)),
}

MAX_SLUG = 100  # well under what file systems allow
MAX_PACKAGE = 40  # the lines that import it stay within the project's line length
# What Python's email package, and with it a wheel's metadata, takes for an address.
EMAIL = re.compile(r"[A-Za-z0-9_%+-]+(\.[A-Za-z0-9_%+-]+)*@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")


def refusals(answers: dict) -> list[str]:
    """One sentence for each answer that cannot be used; it names the answer and the remedy."""
    sentences = []
    for key in ("project_name", "description", "author_name", "email"):
        # Control characters, halves of surrogate pairs and line separators; an emoji may hold a joiner (Cf).
        if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in answers[key]):
            sentences.append(f"{key}={answers[key]!r} holds a character that cannot be printed: leave it out.")
    if not answers["project_name"].strip():
        sentences.append("project_name is empty: give the project a name.")
    if answers["email"] and not EMAIL.fullmatch(answers["email"]):
        sentences.append(f"email={answers['email']!r} is no address: write it as name@domain, or leave it empty.")
    if answers["vision"] and answers["data_kind"] != "images":
        sentences.append(f"vision=true is for pictures, not for {answers['data_kind']}: answer data_kind=images.")
    sentences += _slug_refusals(answers["project_slug"], answers["_reserved"])
    sentences += _package_refusals(answers["package_name"], answers["_reserved"])
    return sentences


def _slug_refusals(slug: str, reserved: list[str]) -> list[str]:
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", slug):
        return [f"project_slug={slug!r} is no folder name: take ASCII letters, digits and dashes, as in 'my-project'."]
    if len(slug) > MAX_SLUG:
        return [f"project_slug={slug!r} has {len(slug)} characters: take {MAX_SLUG} or less."]
    if slug.lower().split(".")[0] in WINDOWS_DEVICES:
        return [f"project_slug={slug!r} cannot be a folder on Windows: take '{slug}-project'."]
    if re.sub(r"[._-]+", "_", slug.lower()) in reserved:
        return [f"project_slug={slug!r} is the name of another package: take '{slug}-project'."]
    return []


def _package_refusals(package: str, reserved: list[str]) -> list[str]:
    if not re.fullmatch(r"[a-z_][a-z0-9_]*", package):
        return [
            f"package_name={package!r} is no name of a Python package: "
            "take small letters, digits and underscores, as in 'my_project'."
        ]
    if len(package) > MAX_PACKAGE:
        return [f"package_name={package!r} has {len(package)} characters: take {MAX_PACKAGE} or less."]
    if is_taken(package, reserved):
        return [f"package_name={package!r} is taken, Python would find another one under it: take '{package}_project'."]
    return []


def is_taken(package: str, reserved: list[str]) -> bool:
    """Keywords, the standard library, and what the generated project needs (`_reserved` in cookiecutter.json)."""
    return keyword.iskeyword(package) or package in {*sys.stdlib_module_names, *reserved, *WINDOWS_DEVICES}


def main(answers: dict) -> None:
    found = refusals(answers)
    for sentence in found:
        print(f"error: {sentence}", file=sys.stderr)
    if found:
        sys.exit(1)


if __name__ == "__main__":
    main(json.loads(r"""{{ cookiecutter | tojson }}"""))
