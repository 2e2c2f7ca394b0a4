"""Run directories: how they are made, what they say of their run, and how a run goes on in its own."""
