"""The server's side: what the nodes say."""

import logging

# Alembic tells of its own plugins while it is imported.
logging.getLogger("alembic").setLevel(logging.WARNING)
