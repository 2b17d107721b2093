"""Data sets -> tasks: the demo set built from images inside installed packages, and a user's own folder."""
