"""One file a verb: each wires the parts and owns the rhythm."""
