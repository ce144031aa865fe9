"""What run and sweep folders say afterwards: status, goodput, curves, the sweep's page."""
