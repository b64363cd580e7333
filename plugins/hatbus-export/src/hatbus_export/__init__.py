"""Plugins that write a model for use without hatbus."""
