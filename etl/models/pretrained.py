"""Foreign model folders, read as data: the only place that calls transformers' `from_pretrained`.

A folder may name code of its own (`auto_map` in its config.json), and weights may be pickles. Both would run code that
the folder's author wrote, so neither is read: no remote code, only safetensors, and only files on this machine.
"""

from pathlib import Path
from typing import Any

from etl.errors import ConfigError, said


def load_tokenizer(folder: str | Path, **more: Any) -> Any:
    """The tokenizer of a local folder; `more` is passed to transformers.

    Raises:
        ConfigError: there is none that transformers can load without the folder's own code.
    """
    from transformers import AutoTokenizer

    return _load(AutoTokenizer, "a tokenizer", folder, more)


def load_model(auto: Any, what: str, folder: str | Path, **more: Any) -> Any:
    """A model of a local folder, only from safetensors (or the GGUF file that `more` names).

    Args:
        auto: the class of transformers that chooses the architecture, such as AutoModelForCausalLM.
        what: the kind of model with its article, for the error.
        folder: has config.json and the weights.
        **more: is passed to transformers.

    Raises:
        ConfigError: there is none that transformers can load without the folder's own code, or its weights are pickles.
    """
    return _load(auto, what, folder, {"use_safetensors": True, **more})


def _load(auto: Any, what: str, folder: str | Path, more: dict[str, Any]) -> Any:
    from safetensors import SafetensorError

    try:
        return auto.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **more)
    except SafetensorError as error:
        raise ConfigError(f"the weights in {folder} are damaged ({said(error)}); copy them again") from error
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder} is not {what} that transformers can load from safetensors and without custom code: {said(error)}"
        ) from error
