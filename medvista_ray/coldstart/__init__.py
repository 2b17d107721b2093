"""Where supervised fine-tuning gets its trajectories: a scripted expert, and recordings of a teacher; their filter."""
