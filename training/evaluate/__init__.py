"""An exported student beside baselines."""
