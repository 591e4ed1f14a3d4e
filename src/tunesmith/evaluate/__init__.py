"""Attempts, their statistics, and paired comparisons."""
