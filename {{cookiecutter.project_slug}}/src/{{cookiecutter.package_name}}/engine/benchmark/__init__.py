"""How fast it is: training beside a loop written by hand, and the formats of a bundle beside eager mode."""
