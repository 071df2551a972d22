"""A villain beside good callers, and the figures of a worker under load; ``python -m tests.soak`` runs it."""
