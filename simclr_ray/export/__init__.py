"""A trained encoder in the forms that other tools load."""
