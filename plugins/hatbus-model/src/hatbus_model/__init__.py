"""Plugins for the model's weights: freezing, fusing, averaging, teaching."""
