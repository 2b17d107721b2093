"""The policy network: load a Hugging Face folder, one forward pass for engine and learner, one image processor."""
