"""Scores: of a split, of an image that gets worse, of whole scenes, of a table of runs."""
