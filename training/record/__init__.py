"""What a run says of itself: metrics, accounts, hardware, watchdog."""
