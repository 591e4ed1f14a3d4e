"""Settings: one schema, its layers, and the flags and reference made from it."""
