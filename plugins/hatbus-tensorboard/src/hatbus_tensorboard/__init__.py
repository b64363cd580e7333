"""hatbus plugin: curves, images, histograms and texts of a run for TensorBoard."""
