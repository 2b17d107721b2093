"""What a model can call: the tools, their registry, and the runner that never lets a tool's fault out."""
