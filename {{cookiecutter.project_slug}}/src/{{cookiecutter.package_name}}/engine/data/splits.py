"""The names of splits, and how few samples of a label are too few for them."""

SPLITS = ("train", "val", "test")
# The names of splits in folders and columns.
SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
MIN_SAMPLES = 5  # of a label, so that each split has one
