"""A sweep under Ray Tune: trials are pretraining runs, Optuna proposes their values, ASHA prunes the worst."""
