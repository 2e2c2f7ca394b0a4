"""`python -m <package> <command>`: the four commands of this package, and those of the engine."""

from .engine import commands

# Modules of this package with a function `main()`: to add a command, add its name here.
COMMANDS = ("train", "evaluate", "predict", "export")

if __name__ == "__main__":
    commands.main(COMMANDS)
