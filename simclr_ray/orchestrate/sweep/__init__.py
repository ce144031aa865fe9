"""A sweep under Ray Tune: trials are pretraining runs, Optuna proposes them, ASHA ends the worst early."""
