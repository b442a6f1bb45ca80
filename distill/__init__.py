"""The laboratory: data > teacher and student > checkpoint > scores."""
