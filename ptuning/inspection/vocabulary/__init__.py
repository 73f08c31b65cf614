"""The base model's tokens as inspection sees them: embeddings, neighbours, chance.

Knows nothing of tasks.
"""
