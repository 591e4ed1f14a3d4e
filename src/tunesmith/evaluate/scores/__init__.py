"""Metrics of replies: one module a family, one table of which task has which."""
