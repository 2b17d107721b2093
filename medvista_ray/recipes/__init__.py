"""What a user runs: demo, sft, train, eval, and the script that makes the shipped base checkpoint."""
