"""One loop that trains every policy, the average of its weights, and checkpoints that resume exactly."""
