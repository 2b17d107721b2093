"""Episodes, groups, the append-only token stream, advantages, and the cut of a batch over ranks."""
