"""Preemption notices: a watcher on each machine drains its Ray node, and rank 0 polls which nodes are draining."""
