"""Spot notices: a watcher on each machine drains its Ray node, and training asks which nodes drain."""
