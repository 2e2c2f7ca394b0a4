"""Data modules, their data sets and loaders, and what is known of labels and splits."""
