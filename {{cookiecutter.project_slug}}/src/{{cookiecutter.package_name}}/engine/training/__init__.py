"""Training: building what the configuration names, starting points, preflight, callbacks and checkpoints."""
