"""The hyperparameter search: its space, its study, the pruning of trials and the report at the end."""
