"""From prepared Parquet shards to augmented views: order, decoding, augmentation. Never torch, never Ray."""
