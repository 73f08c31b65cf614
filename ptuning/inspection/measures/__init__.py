"""Measures of a prompt, one per module; `catalogue` lists those that every inspection makes.

Each gives a table and says how to read it. Knows nothing of verdicts, pages or terminals.
"""
