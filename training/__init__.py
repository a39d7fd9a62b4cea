"""The trainer: reads committed datasets, never makes corpus rows. The only package that needs torch and DeepSpeed."""
