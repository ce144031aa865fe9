"""Names of the files of a run folder that more than one module knows."""

ENCODER = "encoder.safetensors"
