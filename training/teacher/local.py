"""A teacher in this process: any transformers causal LM of a local folder.

The rows of a batch are concatenated in one sequence and attend only to themselves
(training/models/attention.py), so nothing is padded on a CPU; on a GPU a batch is filled to one length, so that nothing
is compiled twice. Logits are made `chunk_tokens` positions at a time, in float32, only for the tokens that are asked
for, and only their log-probabilities stay: peak memory over the weights is the activations of one batch, chunk_tokens x
vocabulary x 4 bytes, and a float32 copy of the head where it is narrower.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from etl.arrays import F32, I32
from training.models.causal_lm import DTYPES, TransformersNetwork, from_weights
from training.teacher.teacher import LocalTeacherConfig, Request, Scores


class LocalTeacher:
    """A loaded model on one device.

    Args:
        config: which model, and how much at a time.
        temperature: logits are divided by it.
        topk: most likely tokens that are returned for each position.
        device: where it runs; on a CPU with one thread, so that scores do not depend on the machine's cores.

    Raises:
        ConfigError: the folder has no causal LM that can be packed.
    """

    def __init__(self, config: LocalTeacherConfig, temperature: float, topk: int, device: str) -> None:
        if device == "cpu":
            torch.set_num_threads(1)
        model = from_weights(config.model, DTYPES[config.dtype])
        self.max_tokens = int(model.config.get_text_config().max_position_embeddings)
        self.batch_tokens = config.batch_tokens
        self._chunk_tokens = config.chunk_tokens
        self._temperature, self._topk = temperature, topk
        self._network = TransformersNetwork(model).eval().to(device)
        self._head = self._network.get_parameter(self._network.head_weight).detach().float()

    def score(self, requests: Sequence[Request]) -> list[Scores]:
        """See `Teacher.score`; one forward pass."""
        if not requests:
            return []
        hidden = self._hidden(requests)
        targets = np.concatenate([request.input_ids[request.positions] for request in requests])
        scores = self._scores(hidden, torch.from_numpy(targets.astype(np.int64)).to(hidden.device))
        ends = np.cumsum([len(request.positions) for request in requests])
        pieces = zip(*(np.split(values, ends[:-1]) for values in scores), strict=True)
        return [Scores(*piece) for piece in pieces]

    @torch.inference_mode()
    def _hidden(self, requests: Sequence[Request]) -> torch.Tensor:
        """Hidden states that predict the scored tokens of all rows: [M, H]."""
        device = self._head.device
        lengths = np.array([len(request.input_ids) for request in requests])
        starts = np.cumsum(lengths) - lengths
        total = int(lengths.sum())
        room = 0 if device.type == "cpu" else -total % self.batch_tokens
        ids = np.concatenate([*(request.input_ids for request in requests), np.zeros(room, np.int32)])
        borders = [*starts.tolist(), total, *([total + room] if room else [])]
        positions = np.concatenate([np.arange(end - start) for start, end in itertools.pairwise(borders)])
        hidden, _ = self._network(
            torch.from_numpy(ids.astype(np.int64))[None].to(device),
            torch.from_numpy(positions)[None].to(device),
            torch.tensor(borders, dtype=torch.int32, device=device),
        )
        rows = np.concatenate([start + request.positions - 1 for start, request in zip(starts, requests, strict=True)])
        return hidden[torch.from_numpy(rows).to(device)]

    @torch.inference_mode()
    def _scores(self, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[F32, I32, F32]:
        """logp [M], top-k ids [M, k] and their logp [M, k]."""
        logp, ids, top = [], [], []
        for start in range(0, len(hidden), self._chunk_tokens):
            rows = slice(start, start + self._chunk_tokens)
            logits = hidden[rows].float() @ self._head.T
            logits /= self._temperature
            norm = logits.logsumexp(dim=1, keepdim=True)
            logp.append((logits.gather(1, targets[rows, None]) - norm)[:, 0].cpu())
            best = logits.topk(self._topk, dim=1)
            ids.append(best.indices.int().cpu())
            top.append((best.values - norm).cpu())
        return torch.cat(logp).numpy(), torch.cat(ids).numpy(), torch.cat(top).numpy()
