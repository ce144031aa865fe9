"""From a source of images (folder, Parquet, tars, torchvision, synthetic) to a prepared dataset."""
