"""Fewer tokens: folding, merging, pruning and random subsets."""
