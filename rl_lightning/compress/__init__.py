"""Operators on any module: prune, quantise, count; for the command line and for environments."""
