"""People compare responses: the tool, what they said, how well they agree, and its datasets."""
