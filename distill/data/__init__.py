"""Data sets: crops, labels, votes, splits, and what is done to a batch of images."""
