"""Is a reward model any good: accuracy, calibration, biases, agreement, uncertainty."""
