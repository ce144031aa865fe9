"""Encoders, projection heads and the synchronised BatchNorm under them."""
