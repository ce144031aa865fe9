"""Prepares a source of images (folder, Parquet, tars, torchvision, synthetic) as a dataset."""
