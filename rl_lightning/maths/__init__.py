"""Pure functions of tensors: returns, losses, distributions, planning."""
