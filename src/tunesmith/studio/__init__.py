"""Pages on the server: runs watched, started, compared, and talked with."""
