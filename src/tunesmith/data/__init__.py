"""From rows in files to tokenised rows that can be trusted."""
