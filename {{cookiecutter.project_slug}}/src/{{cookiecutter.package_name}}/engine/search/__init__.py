"""The trials of a search: what it may change, who runs which, how one is run, and what they have shown."""
