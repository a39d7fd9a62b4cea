"""The checkpoints' section of a training configuration, in its own file because checkpoints.py loads DeepSpeed."""

from pydantic import Field

from etl.config import Config


class CheckpointConfig(Config):
    """When to save, where, and how many to keep; the end of training is always saved."""

    every_steps: int = Field(default=100, ge=1)
    """Optimizer steps between two checkpoints."""
    keep: int = Field(default=2, ge=1)
    """Number of newest checkpoints to keep."""
    keep_best: int = Field(default=0, ge=0)
    """Number of checkpoints with the lowest held-out loss to keep as well."""
    root: str | None = None
    """Folder or URL (s3://, gs:// …) that every rank can reach; null: `checkpoints` in the run's output."""
    scratch: str | None = None
    """Folder on each machine's disk, with room for two checkpoints of its ranks; null: `scratch` in the output."""
    commit_timeout_s: float = Field(default=1800.0, gt=0)
    """Seconds that rank 0 waits for the other ranks' receipts after uploading its own files."""
