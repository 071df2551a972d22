"""Fuzzing of every decoder that takes bytes from a peer; ``python -m tests.fuzz`` runs it."""
