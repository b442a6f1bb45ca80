"""Stand-ins for what a test machine does not have: a device, a driver, a network that misbehaves."""
