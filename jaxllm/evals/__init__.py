"""Looking at models: what one batch does inside training, and how good a checkpoint is."""
