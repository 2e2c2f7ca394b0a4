"""Answers drawn at random: all that can be printed is accepted, and a refusal is one sentence."""

import os
import re
import shutil
import string
import tempfile
import tomllib
from pathlib import Path

from conftest import bake_into, files_of, parse, ruff
from cookiecutter.exceptions import FailedHookException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

NUM_EXAMPLES = int(os.environ.get("NUM_EXAMPLES", "20"))  # of each of the two; `make test-all` draws 100
SETTINGS = settings(
    max_examples=NUM_EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)
# Every sentence by which an answer may be refused.
REFUSALS = (
    r"project_name is empty: give the project a name\.",
    r"\w+='.*' holds a character that cannot be printed: leave it out\.",
    r"email=['\"].*['\"] is no address: write it as name@domain, or leave it empty\.",
    r"project_slug=['\"].*['\"] is no folder name: take ASCII letters, digits and dashes, as in 'my-project'\.",
    r"project_slug='.*' has \d+ characters: take 100 or less\.",
    r"project_slug='.*' cannot be a folder on Windows: take '.*'\.",
    r"project_slug='.*' is the name of another package: take '.*-project'\.",
    r"package_name=['\"].*['\"] is no name of a Python package: take small letters, .*, as in 'my_project'\.",
    r"package_name='.*' has \d+ characters: take 40 or less\.",
    r"package_name='.*' is taken, Python would find another one under it: take '.*_project'\.",
)

# Control characters, halves of surrogate pairs and line separators cannot be printed.
PRINTABLE = st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"))
SPICES = st.sampled_from(
    ['"', "'", "\\", '"""', "{", "}", "%", "#", "$(id)", "`id`", "${HOME}", "../", "<b>", "]]", ": "]
)


def is_template(words: str) -> bool:
    """Cookiecutter renders an answer that is given to it, as it does its own defaults."""
    return re.search(r"\{\{|\{%|\{#", words) is not None


def words(min_size: int = 0) -> st.SearchStrategy[str]:
    parts = st.lists(st.one_of(st.text(PRINTABLE, max_size=20), SPICES), min_size=min_size, max_size=6)
    return parts.map("".join).filter(lambda text: not is_template(text) and (not min_size or text.strip()))


def check(project: Path, answers: dict[str, str]) -> None:
    for path in files_of(project):
        parse(project / path)
    described = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for name in ("project_slug", "description"):
        if name in answers:
            assert described["name" if name == "project_slug" else name] == answers[name]
    ruff("check", cwd=project)
    ruff("format", "--check", cwd=project)


def baked(**answers: str) -> str:
    """Generates and checks a project; returns the sentence of a refusal, or an empty text."""
    with tempfile.TemporaryDirectory() as folder:
        outside, out = Path(folder, "outside"), Path(folder, "outside/out")
        out.mkdir(parents=True)
        try:
            project = bake_into(out, git_init=False, **answers)
        except FailedHookException as refusal:
            assert not list(out.iterdir()), "something is left"
            return str(refusal)
        finally:
            assert list(outside.iterdir()) == [out]
        assert list(out.iterdir()) == [project]
        check(project, answers)
        shutil.rmtree(out)
    return ""


@SETTINGS
@given(project_name=words(min_size=1), description=words(), author_name=words())
def test_words_that_can_be_printed_are_accepted(project_name: str, description: str, author_name: str) -> None:
    assert baked(project_name=project_name, description=description, author_name=author_name) == ""


NAMES = st.one_of(
    st.text(string.ascii_letters + string.digits + "-_.", max_size=45),
    st.sampled_from(["..", "/etc", "a/../../b", "nul", "Con.x", "torch", "class", "~", "-rf", "a b", "ä", "x" * 101]),
    words(),
)


@SETTINGS
@given(project_slug=NAMES, package_name=NAMES, email=st.one_of(st.just("you@example.com"), words()))
def test_other_answers_give_a_project_or_one_sentence_each(project_slug: str, package_name: str, email: str) -> None:
    refused = baked(project_slug=project_slug, package_name=package_name, email=email)
    for sentence in refused.splitlines():
        assert any(re.fullmatch(f"error: {known}", sentence) for known in REFUSALS), sentence
