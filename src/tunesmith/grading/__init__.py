"""Reading answers and checking arithmetic."""
