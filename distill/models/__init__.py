"""Teacher and student, what they are built from, and how they are kept on disk."""
