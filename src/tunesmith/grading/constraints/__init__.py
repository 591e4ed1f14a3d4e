"""Verifiable constraints on a text, such as IFEval asks for."""
