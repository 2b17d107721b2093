"""Records, the protocols between layers, and the wire codec. Knows numpy and msgspec only."""
