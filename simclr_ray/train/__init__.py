"""Training without Ray: the step, the loop, checkpoints, logs, and one attempt at a run by a group of workers."""
