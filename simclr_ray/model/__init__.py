"""Encoders, projection heads and the synchronised BatchNorm that they use."""
