"""An OpenAI-compatible server on the project's own engine."""
