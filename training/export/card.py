"""The files of an export for people: README.md (the model card of the Hugging Face Hub) and LICENSES.md.

Both are made from the export's own manifest (training/export/export.py), so they hold no time, host or path that it
does not hold.
"""

from collections import Counter
from typing import Any, Final

import yaml

from etl.harmony.vocabulary import CONTROL_TOKENS
from training.export.harmony_tokenizer import STOP_TOKENS

README: Final = "README.md"
LICENSES: Final = "LICENSES.md"
_UNKNOWN: Final = "unknown"


def card_files(manifest: dict[str, Any], is_of_transformers: bool) -> dict[str, bytes]:
    """The two files, by name.

    Args:
        manifest: of the export.
        is_of_transformers: whether transformers loads the folder.
    """
    parts = [_front(manifest, is_of_transformers), _trained(manifest), _data(manifest)]
    parts += [_prompts(manifest) if manifest["preamble"] else _NO_PROMPTS, _limits(manifest)]
    return {README: "\n\n".join(parts).encode() + b"\n", LICENSES: _licences(manifest).encode() + b"\n"}


def _front(manifest: dict[str, Any], is_of_transformers: bool) -> str:
    """The front matter; the licence of the model itself is for its maker to choose."""
    base = _base(manifest["model"])
    front = {
        **({"library_name": "transformers", "pipeline_tag": "text-generation"} if is_of_transformers else {}),
        "license": "other",
        "license_name": "see-licenses",
        "license_link": LICENSES,
        **({"base_model": base} if base else {}),
        "datasets": sorted(_by(manifest, "source_dataset").keys() - {_UNKNOWN}),
        "tags": ["stillhouse"],
    }
    return "---\n" + yaml.safe_dump(front, sort_keys=False, allow_unicode=True) + "---"


def _base(model: dict[str, Any]) -> str | None:
    """The last name of the folder of weights that the run began with."""
    params = model.get("params", {})
    weights = params.get("weights") or (params.get("parent") or {}).get("weights")
    return str(weights).rstrip("/").rpartition("/")[2] if weights else None


def _trained(manifest: dict[str, Any]) -> str:
    checkpoint, base = manifest["checkpoint"], _base(manifest["model"])
    loss = checkpoint["held_out_loss"]
    begun = f"It began with the weights {_cell(base)}." if base else "It began with random weights."
    stages = [f"{_cell(stage['name'])} (up to {stage['tokens']:,} tokens)" for stage in manifest["config"]["stages"]]
    return (
        f"# A model trained with Stillhouse {manifest['stillhouse']}\n\n{begun} This is the checkpoint "
        f"`{checkpoint['name']}`, after {checkpoint['step']:,} steps and {manifest['tokens']:,} tokens, of which "
        f"{manifest['supervised_tokens']:,} were targets. Held-out loss: "
        f"{'not measured' if loss is None else f'{loss:.4f}'}.\n\nStages of the run: {', '.join(stages)}."
    )


def _data(manifest: dict[str, Any]) -> str:
    return (
        "## What it was trained on\n\nA document that was trained on twice counts twice.\n\n"
        + _table("source", _by(manifest, "source_dataset"))
        + "\n\n"
        + _table("licence", _by(manifest, "license"))
        + f"\n\n[{LICENSES}]({LICENSES}) says more of the licences. `stillhouse_manifest.json` has the digests and "
        "accounts of the corpora, the configuration and every decision on sampling."
    )


def _prompts(manifest: dict[str, Any]) -> str:
    said = {key: value for key, value in manifest["preamble"].items() if key not in ("corpus", "notes")}
    lines = yaml.safe_dump(said, sort_keys=False, allow_unicode=True, width=1000)
    stops = ", ".join(f"`{CONTROL_TOKENS[token]}` ({token:,})" for token in STOP_TOKENS)
    # The notes themselves name folders of the maker's.
    notes = _NOT_OF_ALL if manifest["preamble"]["notes"] else ""
    return (
        "## How to prompt it\n\nIt speaks Harmony. Its chat template renders messages as the corpus was rendered:\n\n"
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        "tokenizer, model = (kind.from_pretrained(FOLDER) for kind in (AutoTokenizer, AutoModelForCausalLM))\n"
        'messages = [{"role": "user", "content": "Why is the sky blue?"}]\n'
        'prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")\n'
        "print(tokenizer.decode(model.generate(**prompt, max_new_tokens=500)[0]))\n```\n\n"
        f"It begins with the preamble of the corpus:\n\n```yaml\n{lines}```\n\nA completion ends at {stops}.{notes}"
    )


_NOT_OF_ALL: Final = (
    "\n\nNote: this preamble was assumed, or other corpora of the run have others; `preamble` in "
    "`stillhouse_manifest.json` says which."
)
_NO_PROMPTS: Final = (
    "## How to prompt it\n\nThis export has no Harmony tokenizer, so it has no chat template of the corpus."
)


def _limits(manifest: dict[str, Any]) -> str:
    harmony = (
        "\n- It reads text alone, and no prompt may hold the letters of a control token.\n"
        "- Another preamble, effort or date than the corpus had is another prompt than it was trained on."
    )
    return (
        "## Limits\n\n- Nothing here measures what it knows, or whether what it says is true or harmless: evaluate it "
        "for your use.\n- What its data lack it has not learnt; see the sources above."
        + (harmony if manifest["preamble"] else "")
    )


_NO_ADVICE: Final = (
    "As the rows of the corpora say it. Whether a licence of data binds a model that was trained on them is not said "
    "here; the licence of the model is for its maker to choose."
)


def _licences(manifest: dict[str, Any]) -> str:
    tokens, base = _by(manifest, "license"), _base(manifest["model"])
    unknown = tokens.get(_UNKNOWN, 0)
    parts = [
        "# Licences of the training data",
        _NO_ADVICE,
        _table("licence", tokens),
    ]
    if unknown:
        share = unknown / sum(tokens.values())
        parts.append(f"Of {unknown:,} tokens ({share:.1%}) the corpora say no licence: find it out at the sources.")
        parts.append(_table("source without a licence", _by(manifest, "source_dataset", only_unknown=True)))
    if base:
        parts.append(f"The weights that the run began with, {_cell(base)}, have a licence of their own.")
    return "\n\n".join(parts)


def _by(manifest: dict[str, Any], key: str, only_unknown: bool = False) -> dict[str, int]:
    """Trained tokens of the ledger by one of its labels, the most first."""
    rows = manifest["ledger"]["rows"]
    tokens: Counter[str] = Counter()
    for row in rows:
        if row["license"] is None or not only_unknown:
            tokens[row[key] or _UNKNOWN] += row["tokens"]
    return dict(sorted(tokens.items(), key=lambda item: (-item[1], item[0])))


def _table(what: str, tokens: dict[str, int]) -> str:
    total = sum(tokens.values())
    lines = [f"| {what} | tokens | share |", "|---|---:|---:|"]
    lines += [f"| {_cell(name)} | {count:,} | {count / total:.1%} |" for name, count in tokens.items()]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """One line that ends no cell, and no markup of the corpus's."""
    line = " ".join(str(text).split())
    return "".join(f"\\{sign}" if sign in "\\|`<[*_" else sign for sign in line)
