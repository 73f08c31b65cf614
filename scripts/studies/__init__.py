"""Studies of how well prompts learn: their tasks, their runs, their tables."""
