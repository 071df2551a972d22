"""The built-in engines, found by entry point like anyone's."""
