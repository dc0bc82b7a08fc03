"""Your own data before it is trained on: read, checked, split; nothing is dropped silently."""
