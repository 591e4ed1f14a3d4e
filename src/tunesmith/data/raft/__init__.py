"""RAFT: documents to chunks, questions, distractors and checked rows."""
