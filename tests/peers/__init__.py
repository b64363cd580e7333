"""The same tasks in hatbus, by hand and in other trainers, measured side by side."""
