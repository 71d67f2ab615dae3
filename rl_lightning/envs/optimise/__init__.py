"""Tasks whose world is a model: it is pruned, quantised, trained or tuned, and judged."""
