"""Measures of a prompt, one a module: each gives a table and says how it is read.

Knows nothing of verdicts, pages or terminals.
"""
