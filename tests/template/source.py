"""Reads a package without importing it: what it imports, which names it defines, what its options name."""

import ast
import functools
import importlib.util
import itertools
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from conftest import PROJECT, TEMPLATE

PACKAGE = PROJECT / "src/{{cookiecutter.package_name}}"


class Import(NamedTuple):
    """One imported name; `module` begins below the package, or with a third party's package."""

    module: tuple[str, ...]
    name: str
    line: int
    third_party: bool
    in_function: bool
    for_types_only: bool


def hook(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TEMPLATE / f"hooks/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def unwanted(answers: dict[str, object]) -> Iterator[str]:
    for (question, answer), patterns in hook("post_gen_project").UNWANTED.items():
        if answers[question] == answer:
            yield from patterns


@functools.cache
def parsed(text: str) -> ast.Module:
    return ast.parse(text)


def imports(path: Path, package: Path) -> tuple[Import, ...]:
    """All imports of a file, wherever they stand; raises `ValueError` for one that climbs out of the package."""
    return _imports(path.read_text(encoding="utf-8"), path.relative_to(package).parent.parts)


@functools.cache
def _imports(text: str, folder: tuple[str, ...]) -> tuple[Import, ...]:
    tree, found = parsed(text), []
    in_functions = nodes_below(tree, lambda node: isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    for_types = nodes_below(tree, lambda node: isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    for node in ast.walk(tree):
        where = (node in in_functions, node in for_types)
        if isinstance(node, ast.Import):
            found += [Import(tuple(alias.name.split(".")), "", node.lineno, True, *where) for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            module = tuple(node.module.split(".")) if node.module else ()
            if node.level > len(folder) + 1:
                raise ValueError(f"line {node.lineno} of a file in {folder} climbs out of the package")
            if node.level:
                module = folder[: len(folder) + 1 - node.level] + module
            found += [Import(module, alias.name, node.lineno, not node.level, *where) for alias in node.names]
    return tuple(found)


def nodes_below(tree: ast.AST, is_wanted: Callable[[ast.AST], bool]) -> set[ast.AST]:
    return set(itertools.chain.from_iterable(map(ast.walk, filter(is_wanted, ast.walk(tree)))))


def module_file(package: Path, module: tuple[str, ...]) -> Path | None:
    place = package.joinpath(*module)
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


def is_defined(package: Path, module: tuple[str, ...], name: str) -> bool:
    """Whether the module exists and has the name: as a module below it, a definition, an import, or a lazy name."""
    if module_file(package, (*module, name)) is not None:
        return True
    file = module_file(package, module)
    if file is None:
        return False
    return name in defined_names(file.read_text(encoding="utf-8")) or name in public_names(file)


@functools.cache
def defined_names(text: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(parsed(text)):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(node.name)
            case ast.Name(ctx=ast.Store()):
                names.add(node.id)
            case ast.alias():
                names.add(node.asname or node.name.split(".")[0])
    return names


def public_names(path: Path) -> list[str]:
    """`__all__` of a module: a list, or the keys of a table, as in `list(_PLACES)`."""
    values = {
        target.id: node.value
        for node in parsed(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    value = values.get("__all__")
    if isinstance(value, ast.Call):
        value = values[ast.unparse(value.args[0])]
    if value is None:
        return []
    return list(ast.literal_eval(value))


def targets(path: Path, package: str) -> Iterator[str]:
    """The classes and functions of the project that an option file names, by their place below the package."""
    text = path.read_text(encoding="utf-8")
    yield from (f"engine.{place}" for place in re.findall(r"\$\{engine:([\w.]+)\}", text))
    yield from re.findall(rf'_target_: "?{re.escape(package)}\.([\w.]+)', text)


def dependencies(pyproject: Path) -> set[str]:
    """The names of what a project needs to run, its server included."""
    contents = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    needed = [*contents["project"]["dependencies"], *contents["dependency-groups"].get("serve", [])]
    return {re.match(r"[\w-]+", requirement).group().lower().replace("_", "-") for requirement in needed}
