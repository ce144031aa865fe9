"""Exports a trained encoder in formats that other tools load."""
