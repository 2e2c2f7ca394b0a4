"""Starts the processes of one measured case; the configuration of its run comes as JSON on the standard input."""

import json
import sys

from ..quiet import QUIET, quieten
from ..refusal import Refusal
from ..strategies.launch import launch
from .case import by_hand, with_lightning


def main() -> None:
    quieten(*QUIET)
    config = json.load(sys.stdin)
    try:
        launch(by_hand if config["turns"]["by_hand"] else with_lightning, config)
    except Refusal as refusal:
        sys.exit(f"error: {refusal}")


if __name__ == "__main__":
    main()
