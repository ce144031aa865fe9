"""Reports on run and sweep folders: status, goodput, curves, plans, the sweep's page."""
