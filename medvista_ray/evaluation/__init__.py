"""Held-out evaluation: outcomes of episodes, their statistics, the table."""
