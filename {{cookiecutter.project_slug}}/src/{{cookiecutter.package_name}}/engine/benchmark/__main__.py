"""Starts the processes of one measured case; the configuration of its run comes as JSON on the standard input."""

import json
import sys

from ..distributed.launch import launch
from ..errors import UserError
from ..warning_filters import IGNORED_WARNINGS, ignore_warnings
from .case import by_hand, with_lightning


def main() -> None:
    ignore_warnings(*IGNORED_WARNINGS)
    config = json.load(sys.stdin)
    try:
        launch(by_hand if config["turns"]["by_hand"] else with_lightning, config)
    except UserError as refusal:
        sys.exit(f"error: {refusal}")


if __name__ == "__main__":
    main()
