"""Scores of a critic over all pairs, and their sums."""
