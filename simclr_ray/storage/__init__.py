"""Files by path or URI, on a local disk or an object store, and the files of a run folder by name."""
