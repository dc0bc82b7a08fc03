"""Filters of text to learn from: copies, near copies, broken text, spam, unsafe text."""
