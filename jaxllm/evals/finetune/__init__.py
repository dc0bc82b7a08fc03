"""Did fine-tuning help? The same questions before and after, answered and compared."""
