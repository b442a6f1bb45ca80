"""Scores: of a split, of a picture that gets worse, of whole scenes, of a table of runs."""
