"""Bundles, their inputs and their answers; nothing here imports torch or lightning."""
