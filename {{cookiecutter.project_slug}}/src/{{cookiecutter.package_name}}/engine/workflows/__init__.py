"""What the commands train, evaluate, predict and export do; the only layer that sees all others."""
