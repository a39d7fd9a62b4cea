"""Records of a run: metrics, accounting, hardware, watchdog."""
