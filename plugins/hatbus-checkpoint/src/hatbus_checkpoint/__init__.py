"""Checkpoints for hatbus: durable, without pickle, and exact to resume from."""
