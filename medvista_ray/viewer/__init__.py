"""The run report: one self-contained page."""
