"""One run: set-up, batches, task, losses, optimiser, the loop."""
