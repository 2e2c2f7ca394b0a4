"""Lightning callbacks of this project's own; those that `configs/callbacks/` names, and those that every run has."""
