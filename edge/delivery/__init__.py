"""From a Reading to the broker: the messages, the outbox on disk, one connection."""
