"""Environments stepped by an agent: for training, for evaluation, and looked at all the while."""
