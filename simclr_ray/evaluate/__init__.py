"""Evaluation of a frozen encoder: features, kNN, linear classification, label-free measures."""
