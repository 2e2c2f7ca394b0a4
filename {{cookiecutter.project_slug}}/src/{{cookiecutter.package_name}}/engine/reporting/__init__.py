"""What runs print and leave behind, and the command `runs`."""
