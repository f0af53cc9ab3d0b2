"""Ratios, measured side by side: both contenders in one process, in turns, on one thread, in process CPU time."""
