"""hatbus plugins: validation during training, of a mean teacher too, and early stopping."""
