"""Search for better options: trainings, each a trial, whose options Optuna chooses from what earlier ones have shown.

    python -m <package> search num_trials=50
    python -m <package> search search=mine num_trials=50 trainer.max_epochs=10
    python -m <package> search num_trials=50 strategy=ddp trainer.devices=4

The same command goes on with a search that was ended; started twice, both processes share its trials.
"""

from ..config.command_line import Config
from .report import report_search
from .study import open_search, usable_storage


def main(config: Config) -> None:
    """Runs trials until there are `num_trials`, and reports the best."""
    with usable_storage(config["paths"]["output_dir"]):
        search = open_search(config)
        search.run()
        report_search(search)
