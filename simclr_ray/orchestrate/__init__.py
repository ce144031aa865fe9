"""The code that needs Ray; all other packages work without it."""
