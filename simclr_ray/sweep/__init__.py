"""What a hyperparameter sweep needs besides Ray: its space, its study, its trials and their importances."""
