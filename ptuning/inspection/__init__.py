"""What a soft prompt decodes to, and how much of that can be believed."""
