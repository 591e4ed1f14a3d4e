"""Loading models, attention, adapters."""
