"""Who trains: the generations of a group of workers, kept by the driver, so that they survive any worker."""
