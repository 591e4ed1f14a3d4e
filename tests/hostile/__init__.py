"""Programs that try to get out of the sandbox, and programs that try to forge a pass."""
