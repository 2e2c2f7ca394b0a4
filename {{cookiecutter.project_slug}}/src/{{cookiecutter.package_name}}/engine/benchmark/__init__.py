"""Measures speed: training under each strategy side by side, and the formats of a bundle beside eager mode."""
