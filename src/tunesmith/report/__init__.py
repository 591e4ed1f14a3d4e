"""The report: one self-contained page, and what gathers its data."""
