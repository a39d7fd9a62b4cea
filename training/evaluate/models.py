"""Local models for evaluation: packed for losses, or with transformers' generate; one in memory at a time.

A packed model computes what training computes, document by document in one sequence; a generator is the class of
transformers with its own attention. Decoding is greedy, so the same folder gives the same text.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from etl.errors import ConfigError, said
from etl.models.pretrained import load_model, load_tokenizer
from etl.terminal import shown
from training.models.causal_lm import DTYPES, TransformersNetwork, from_weights
from training.models.factory import Student

_CHANNEL, _MESSAGE = "<|channel|>", "<|message|>"


class Models:
    """Loads models of local folders; what was loaded last is kept until another one is asked for."""

    def __init__(self, dtype: str, device: str | None) -> None:
        """`dtype` is a key of DTYPES; None as device takes a GPU where there is one.

        Raises:
            ConfigError: this machine has no such device.
        """
        chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self.device = torch.empty(0, device=chosen).device
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(
                f"device={shown(chosen)} is not available ({said(error)}); leave it out, or use cpu"
            ) from error
        self.dtype = DTYPES[dtype]
        self._kept: tuple[str, str, Any] = ("", "", None)

    def packed(self, folder: str) -> Student:
        """For losses of packs."""
        return self._keep("packed", folder)

    def generator(self, folder: str) -> "Generator":
        """For text."""
        return self._keep("generator", folder)

    def load_packed(self, folder: str) -> Student:
        """One that is not kept here.

        Raises:
            ConfigError: the folder has no causal LM that can be packed.
        """
        network = TransformersNetwork(from_weights(folder, self.dtype))
        return Student(network).eval().requires_grad_(False).to(self.device)

    def _keep(self, kind: str, folder: str) -> Any:
        if self._kept[:2] != (kind, folder):
            self._kept = ("", "", None)
            loaded = self.load_packed(folder) if kind == "packed" else self._load_generator(folder)
            self._kept = (kind, folder, loaded)
        return self._kept[2]

    def _load_generator(self, folder: str) -> "Generator":
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        model = load_model(AutoModelForCausalLM, "a causal LM", folder, dtype=self.dtype)
        return Generator(Path(folder), model.eval().to(self.device))


@dataclass(frozen=True)
class Generator:
    """A model that writes text."""

    folder: Path
    model: Any

    @cached_property
    def tokenizer(self) -> Any:
        """Of the folder."""
        return load_tokenizer(self.folder)

    def prompt(self, question: str) -> list[int]:
        """A user's question by the chat template, or as plain text where the folder has none."""
        if self.tokenizer.chat_template is None:
            return list(self.tokenizer(f"Question: {question}\nAnswer:").input_ids)
        # A question is text, whatever its letters look like.
        return list(
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": question}],
                add_generation_prompt=True,
                return_dict=False,
                sanitize_control_tokens=True,
                allow_control_tokens=True,
            )
        )

    def answer(self, tokens: list[int]) -> str | None:
        """The text of a completion; of a model of Harmony its last final message, None where it wrote none.

        The marks of a message are control ids, not what text of the same letters is encoded to.
        """
        if not self.speaks_harmony:
            return str(self.tokenizer.decode(tokens, skip_special_tokens=True))
        final = self._final_message(tokens)
        return None if final is None else str(self.tokenizer.decode(final))

    @cached_property
    def speaks_harmony(self) -> bool:
        """Whether its tokenizer has the marks of a message as control ids."""
        return {_CHANNEL, _MESSAGE} <= self._controls.keys()

    def _final_message(self, tokens: list[int]) -> list[int] | None:
        """The ids from the last <|message|> of the channel `final` up to the next control id."""
        controls = set(self._controls.values())
        places = [place for place, token in enumerate(tokens) if token in controls] + [len(tokens)]
        final, channel = None, ""
        for place, end in pairwise(places):
            inner = tokens[place + 1 : end]
            if tokens[place] == self._controls[_CHANNEL]:
                channel = str(self.tokenizer.decode(inner)).strip()
            elif tokens[place] == self._controls[_MESSAGE]:
                final = inner if channel.split(" ")[0] == "final" else final
                channel = ""
        return final

    @cached_property
    def _controls(self) -> dict[str, int]:
        """Ids by name of the tokens that no text is encoded to."""
        added = self.tokenizer.added_tokens_decoder
        return {token.content: number for number, token in added.items() if token.special}

    def complete(self, prompts: list[list[int]], max_new_tokens: int, batch_size: int) -> list[list[int]]:
        """What the model says after each prompt, up to and with the token that ends it."""
        order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
        said: list[list[int]] = [[] for _ in prompts]
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            made = self._batch([prompts[number] for number in numbers], max_new_tokens)
            for number, tokens in zip(numbers, made, strict=True):
                said[number] = tokens
        return said

    @torch.inference_mode()
    def _batch(self, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        longest = max(map(len, prompts))
        pad = next(iter(self._stops), 0)
        device = self.model.device
        ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        made = self.model.generate(
            ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad
        )
        return [self._cut(row) for row in made[:, longest:].tolist()]

    @cached_property
    def _stops(self) -> tuple[int, ...]:
        given = self.model.generation_config.eos_token_id
        return tuple(given) if isinstance(given, list) else () if given is None else (given,)

    def _cut(self, tokens: list[int]) -> list[int]:
        ends = [place for place, token in enumerate(tokens) if token in self._stops]
        return tokens[: ends[0] + 1] if ends else tokens
