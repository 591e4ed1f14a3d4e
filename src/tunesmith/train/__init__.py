"""Packing, loss, loop and checkpoints."""
