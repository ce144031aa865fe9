"""The methods, one file each: the module that is trained and its loss over the global batch."""
