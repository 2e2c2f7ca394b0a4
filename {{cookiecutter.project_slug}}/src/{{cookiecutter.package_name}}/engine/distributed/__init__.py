"""Strategies: which devices and processes run a task, and which samples each of them gets."""
