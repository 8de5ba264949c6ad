"""Finding in token arrays what should not be there twice: copies, near copies, and validation text in training."""
