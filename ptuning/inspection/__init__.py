"""What a prompt means, as far as that can be told.

Knows nothing of training or the command line.
"""
