"""The commands. One file each: arguments in, a library call, a few lines out."""
