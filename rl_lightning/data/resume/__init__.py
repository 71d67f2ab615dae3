"""What a checkpoint carries besides weights, how it gets to disk, and how a run goes on from it."""
