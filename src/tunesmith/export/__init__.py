"""Models as they are delivered: folders and files for other programs, compared with their model."""
