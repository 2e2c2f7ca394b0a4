"""The command line: composing with Hydra, checking options, and building what a section names."""

from pathlib import Path

PACKAGE, _, _ = __name__.partition(".")
ENGINE = Path(__file__).parents[1]
# The owner's options come first: a file of the same name goes before the engine's.
CONFIG_DIRS = (ENGINE.parent / "configs", ENGINE / "configs")
