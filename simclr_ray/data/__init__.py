"""From prepared Parquet shards to augmented views: order, decoding, augmentation. Imports neither torch nor Ray."""
