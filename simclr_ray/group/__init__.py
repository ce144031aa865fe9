"""A process group on the CPU that can be left in the middle of a collective: gloo, and a mesh for small tensors."""
