"""hatbus plugins that show what a run is doing: metrics, statistics, progress, logs, guards."""
