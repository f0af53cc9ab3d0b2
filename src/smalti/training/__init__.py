"""Training: one readable loop per task."""
