"""What a training step minimises, chosen by `kind` in the YAML: a loss of this package, or package.module:Class.

An objective says what it `needs`, counts a pack on the host before the step (`counts`; the trainer sums them over packs
and ranks), computes a pack's loss inside the engine's forward (`loss`; totals of all packs of all ranks sum to L), and
turns the global counts and sums into what is logged (`report`: `loss` and `span_loss`, means over tokens whatever the
weights, `span_tokens` and its own). L itself is logged as `objective`.
"""

from typing import Annotated

from pydantic import Field

from etl.foreign import Foreign
from training.losses.divergences import Divergence
from training.losses.dpo import Dpo
from training.losses.on_policy import OnPolicy
from training.losses.span_ce import CrossEntropy
from training.losses.spans import LossOutput, Objective, StepContext, TeacherModel, TeacherOutput
from training.losses.topk_kl import TopKDivergence
from training.losses.weighted_ce import WeightedCrossEntropy

AnyObjective = Annotated[
    CrossEntropy | WeightedCrossEntropy | OnPolicy | Divergence | TopKDivergence | Dpo,
    Field(discriminator="kind"),
    Foreign(Objective, "counts", "loss", "report"),
]

__all__ = [
    "AnyObjective",
    "CrossEntropy",
    "Divergence",
    "Dpo",
    "LossOutput",
    "Objective",
    "OnPolicy",
    "StepContext",
    "TeacherModel",
    "TeacherOutput",
    "TopKDivergence",
    "WeightedCrossEntropy",
]
