"""One file a step; the names sort in order."""
