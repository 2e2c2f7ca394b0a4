"""The border around the engine and the order of its layers, read from the source of the template."""

import re
from pathlib import Path

import pytest
from conftest import TEMPLATE
from source import PACKAGE, Import, imports, is_defined, module_file, public_names, targets

ENGINE = PACKAGE / "engine"
# Each layer imports those before it, and itself.
LAYERS = (
    ("errors", "console", "cores", "spec", "warning_filters", "rendezvous", "atomic", "isolation", "markdown"),
    ("runs",),
    ("config",),
    ("inference",),
    ("distributed",),
    ("data",),
    ("training",),
    ("export",),
    ("reporting",),
    ("search", "benchmark"),
    ("workflows",),
)
SERVING_IMPORTS = {*LAYERS[0], "config", "inference", "serving"}
ABOVE_ALL_LAYERS = {"__init__", "commands", "doctor", "early_checks", "library", "update"}
MAX_PUBLIC_NAMES, MAX_COMMAND_NAMES = 12, 8
# Modules that are imported within functions, which are slow to import or optional, and who does without them.
FUNCTION_LEVEL_IMPORTS = {
    "benchmark/benchmark.py": {"engine.benchmark.bundles", "engine.benchmark.training"},  # a mistyped option
    "commands.py": {"engine.config"},  # `python -m <package>`, which shows the commands
    "config/command_line.py": {"engine.runs.resume"},  # the image of a server, which has no filelock
    "console.py": {"rich", "rich.console"},  # the image of a server
    "distributed/strategies.py": {"engine.distributed.fully_sharded"},  # every strategy but fsdp, which builds on it
    "doctor.py": {"torch"},  # a machine whose torch cannot be imported, which is what it reports
    "export/onnx.py": {"torch"},  # `verify` on a machine without torch
    "export/onnx_fp16.py": {"onnxruntime.transformers.float16"},  # `verify`
    "export/onnx_int8.py": {"onnxruntime.quantization"},  # `verify`
    # a process that only runs a file, without lightning
    "export/torchscript.py": {"engine.export", "lightning.pytorch", "torchmetrics"},
    "inference/answers.py": {"PIL"},  # a project for tables
    "inference/prediction_files.py": {"pyarrow"},  # everyone who reads no Parquet files
    "inference/tables.py": {"pyarrow"},  # the same
    "rendezvous.py": {"torch.distributed", "lightning.fabric.plugins.environments.slurm"},  # the command line
    "serving/server.py": {"uvloop"},  # Windows, which has none
    "serving/serve.py": {"engine.serving.server"},  # a mistyped option, which is refused before
    "workflows/prediction.py": {  # a bundle needs no torch, and a checkpoint no ONNX Runtime
        "onnxruntime",
        "engine.inference.runtime",
        "torch",
        "engine.export.loops",
        "engine.export.network",
        "engine.export.signature",
        "engine.training",
    },
    "workflows/training.py": {"engine.export.rehearsal"},  # all ranks but the first, without ONNX Runtime
}


def layer_of(path: Path) -> str:
    return path.relative_to(ENGINE).with_suffix("").parts[0]


def target_of(found: Import) -> str:
    """The layer or module of the engine that an import names."""
    below = (*found.module, found.name)[1:]
    return below[0] if below else "__init__"


def engine_imports() -> list[tuple[Path, Import]]:
    return [(path, found) for path in sorted(ENGINE.rglob("*.py")) for found in imports(path, PACKAGE)]


def own_imports() -> list[tuple[Path, Import]]:
    paths = [path for path in sorted(PACKAGE.rglob("*.py")) if ENGINE not in path.parents]
    return [(path, found) for path in paths for found in imports(path, PACKAGE)]


def describe(violations: list[tuple[Path, Import]]) -> str:
    return "\n".join(
        f"{path.relative_to(PACKAGE)}:{found.line} {'.'.join(found.module)} {found.name}" for path, found in violations
    )


def test_engine_imports_nothing_from_outside() -> None:
    """Function-level imports included."""
    outside = [
        (path, found) for path, found in engine_imports() if not found.third_party and found.module[:1] != ("engine",)
    ]
    assert not outside, describe(outside)


def test_layers_import_only_earlier_ones() -> None:
    order = {name: number for number, names in enumerate(LAYERS) for name in names}
    violations = [
        (path, found)
        for path, found in engine_imports()
        if not found.third_party and layer_of(path) in order and found.module[:1] == ("engine",)
        if order.get(target_of(found), len(LAYERS)) > order[layer_of(path)]
    ]
    assert not violations, describe(violations)


def test_imports_within_functions_are_those_with_a_reason() -> None:
    found: dict[str, set[str]] = {}
    for path, each in engine_imports():
        if each.in_function:
            found.setdefault(path.relative_to(ENGINE).as_posix(), set()).add(".".join(each.module))
    assert found == FUNCTION_LEVEL_IMPORTS


def test_every_module_has_its_layer() -> None:
    layers = {layer_of(path) for path in ENGINE.rglob("*.py")}
    assert layers <= {*(name for names in LAYERS for name in names), "serving", *ABOVE_ALL_LAYERS}


def test_serving_imports_inference_and_the_base_only() -> None:
    violations = [
        (path, found)
        for path, found in engine_imports()
        if layer_of(path) == "serving" and not found.third_party and target_of(found) not in SERVING_IMPORTS
    ]
    assert not violations, describe(violations)


def loaded_by(path: Path, known: set[Path]) -> None:
    """Adds the file, and all that importing it loads from the package: each module's parents are loaded too."""
    if path in known:
        return
    known.add(path)
    for found in imports(path, PACKAGE):
        if found.third_party or found.in_function or found.for_types_only:
            continue
        for end in range(len(found.module) + 1):
            if (parent := module_file(PACKAGE, found.module[:end])) is not None:
                loaded_by(parent, known)
        if (module := module_file(PACKAGE, (*found.module, found.name))) is not None:
            loaded_by(module, known)


@pytest.mark.parametrize("layer", ["inference", "serving"])
def test_layer_loads_no_torch(layer: str) -> None:
    """Neither its own files, wherever the import stands, nor what they load."""
    known: set[Path] = {PACKAGE / "__init__.py", ENGINE / "__init__.py"}
    own = sorted((ENGINE / layer).rglob("*.py"))
    for path in own:
        loaded_by(path, known)
    heavy = [
        (path, found)
        for path in sorted(known)
        for found in imports(path, PACKAGE)
        if found.third_party and found.module[0] in ("torch", "lightning", "torchmetrics")
        if path in own or not (found.in_function or found.for_types_only)
    ]
    assert own
    assert not heavy, describe(heavy)


def test_options_of_the_engine_name_the_engine_or_third_parties() -> None:
    for path in sorted((ENGINE / "configs").rglob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        for target in re.findall(r"(?:_target_|class): (\S+)", text):
            assert re.fullmatch(r"\$\{engine:[\w.]+\}|(kornia|lightning|optuna|torch)\.[\w.]+", target), (path, target)
        for target in targets(path, "{{ cookiecutter.package_name }}"):
            module, _, name = target.rpartition(".")
            assert is_defined(PACKAGE, tuple(module.split(".")), name), (path, target)


def test_owner_imports_public_names_only() -> None:
    public, of_commands = public_names(ENGINE / "__init__.py"), public_names(ENGINE / "commands.py")
    assert len(public) <= MAX_PUBLIC_NAMES
    assert len(of_commands) <= MAX_COMMAND_NAMES
    for path, found in own_imports():
        if found.third_party or found.module[:1] != ("engine",):
            continue
        assert found.module == ("engine",), describe([(path, found)])
        assert found.name in {*public, "commands"}, describe([(path, found)])
        if found.name == "commands":
            used = set(re.findall(r"\bcommands\.(\w+)", path.read_text(encoding="utf-8")))
            assert used <= set(of_commands), path


def test_every_public_name_is_used_and_exists() -> None:
    """The contract holds nothing that neither a project nor a page with code to copy needs."""
    used = {found.name for _, found in own_imports() if found.module == ("engine",)}
    for story in (TEMPLATE / "docs/stories").glob("*.md"):
        for names in re.findall(r"^from \.\.engine import (.+)$", story.read_text(encoding="utf-8"), re.MULTILINE):
            used |= set(names.split(", "))
    assert set(public_names(ENGINE / "__init__.py")) <= used
    for found in imports(ENGINE / "__init__.py", PACKAGE):
        assert found.third_party or is_defined(PACKAGE, found.module, found.name), found


def test_engine_holds_no_jinja_of_the_template() -> None:
    for path in ENGINE.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert not re.search(r"\{[{%].*cookiecutter", path.read_text(encoding="utf-8")), path
