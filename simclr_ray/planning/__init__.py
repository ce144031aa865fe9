"""Hours and dollars of a run before it is started, from measured and assumed figures."""
