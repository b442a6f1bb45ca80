"""Scores: of a split, of an image that gets worse, of a table of runs."""
