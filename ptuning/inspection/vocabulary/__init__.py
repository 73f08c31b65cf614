"""The base model's tokens as inspection sees them: embeddings, neighbours, chance, and where prompts began.

Knows nothing of tasks.
"""
