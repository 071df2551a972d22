"""The faults a worker must stand up to, and where each is tested; ``python -m tests.reliability`` writes the page."""
