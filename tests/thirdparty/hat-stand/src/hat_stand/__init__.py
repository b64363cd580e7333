"""Plugins for hatbus that watch a run."""
