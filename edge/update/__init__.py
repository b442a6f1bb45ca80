"""Signed releases: fetched, tried, kept or rolled back; and an installed node's first steps."""
