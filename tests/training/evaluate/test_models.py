"""Models of a folder: what is kept of them, prompts and completions of a generator, answers out of Harmony."""

from types import SimpleNamespace

import pyarrow as pa
import pytest
import torch

from etl.errors import ConfigError
from etl.harmony.parse import parse
from etl.harmony.step import HarmonyStep
from etl.schema import MESSAGE, VERDICT
from training.evaluate.models import Generator, Models


def test_the_model_that_was_loaded_last_is_kept(model, teacher, models):
    first = models.generator(model)
    assert models.generator(model) is first
    packed = models.packed(model)
    assert models.packed(model) is packed
    assert models.generator(model) is not first
    assert models.packed(teacher) is not packed


def test_a_packed_model_is_frozen_and_has_the_asked_type(model):
    student = Models("bfloat16", "cpu").packed(model)
    assert not student.training
    assert {(weight.dtype, weight.requires_grad) for weight in student.parameters()} == {(torch.bfloat16, False)}


@pytest.mark.parametrize("use", ["packed", "generator"])
def test_a_folder_without_a_causal_lm_is_refused(models, tmp_path, use):
    with pytest.raises(ConfigError, match=str(tmp_path)):
        getattr(models, use)(str(tmp_path))


def test_prompts_of_unequal_length_are_completed_greedily(model, models):
    generator = models.generator(model)
    prompts = [[200_006, 173_781], [5, 6, 7, 8, 9, 10, 11], list(range(20, 45))]
    said = generator.complete(prompts, max_new_tokens=5, batch_size=3)
    for prompt, tokens in zip(prompts, said, strict=True):
        ids = list(prompt)
        with torch.no_grad():
            for _ in range(5):
                ids.append(int(generator.model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert tokens == ids[len(prompt) :]


def test_a_completion_ends_with_its_first_stop_token(model, models):
    generator = models.generator(model)
    fixed = SimpleNamespace(
        device="cpu",
        generation_config=generator.model.generation_config,
        generate=lambda ids, **_: torch.cat([ids, torch.tensor([[4, 200_012, 200_002, 9]])], dim=1),
    )
    assert Generator(generator.folder, fixed).complete([[1]], 4, 1) == [[4, 200_012]]
    assert generator.tokenizer.decode(generator.prompt("hi")).endswith("user<|message|>hi<|end|><|start|>assistant")


def test_a_question_is_prompted_as_the_corpus_begins(model, models):
    """Whatever its letters look like."""
    question = [{"role": "user", "channel": None, "recipient": None, "content": "2+2?"}]
    answer = [{"role": "assistant", "channel": "final", "recipient": None, "content": "4"}]
    batch = pa.record_batch(
        {"messages": pa.array([question + answer], pa.list_(MESSAGE)), "verdict": pa.nulls(1, VERDICT)}
    )
    (row,) = HarmonyStep().open()(batch).to_pylist()
    generator = models.generator(model)
    start = row["spans"][0]["start"]
    assert generator.prompt("2+2?") == row["input_ids"][: start + 2]
    (said,) = parse(generator.prompt("a <|end|> b")[:-2])[1:]
    assert said["content"] == "a <|end|> b"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<|channel|>analysis<|message|>1<|end|><|start|>assistant<|channel|>final<|message|>2<|return|>", "2"),
        ("<|channel|>final<|message|>a <| b and <|x|> c<|return|>", "a <| b and <|x|> c"),
        ("<|channel|>final<|message|>1<|end|><|start|>assistant<|channel|>final<|message|>2<|return|>", "2"),
        ("<|channel|>final<|message|>2<|end|><|start|>assistant<|channel|>analysis<|message|>3<|return|>", "2"),
        ("<|channel|>final <|constrain|>json<|message|>{}<|return|>", "{}"),
        ("<|channel|>final<|message|>2<|endoftext|>and 3", "2"),
        ("<|channel|>final<|message|>2", "2"),
        ("<|channel|>final<|message|><|return|>", ""),
        ("<|channel|>analysis<|message|>\\boxed{1}<|return|>", None),
        ("<|channel|>final", None),
        ("the answer is 4<|return|>", None),
        ("", None),
    ],
)
def test_the_answer_in_harmony_is_the_last_final_message_up_to_a_control_id(model, models, text, answer):
    generator = models.generator(model)
    assert generator.answer(generator.tokenizer(text).input_ids) == answer


def test_letters_of_a_mark_are_no_mark(model, models):
    generator = models.generator(model)
    letters = [number for mark in "<|channel|>final<|message|>9" for number in generator.tokenizer(mark).input_ids]
    assert generator.tokenizer.decode(letters) == "<|channel|>final<|message|>9"
    assert generator.answer(letters) is None
    opened = generator.tokenizer("<|channel|>final<|message|>2 ").input_ids
    assert generator.answer([*opened, *letters, 200_002]) == "2 <|channel|>final<|message|>9"


def total(ids, attention_mask, **_):
    """Stands for a model: the sum of the tokens that are seen, then 7 and 8."""
    tail = torch.tensor([[7, 8]] * len(ids))
    return torch.cat([ids, (ids * attention_mask).sum(1, keepdim=True), tail], dim=1)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (None, [[6, 7, 8], [4, 7, 8], [11, 7, 8]]),
        (7, [[6, 7], [4, 7], [11, 7]]),
        ([11, 8], [[6, 7, 8], [4, 7, 8], [11]]),
    ],
)
def test_completions_come_in_the_order_of_the_prompts_and_padding_is_not_seen(tmp_path, batch_size, stop, expected):
    settings = SimpleNamespace(eos_token_id=stop)
    fixed = SimpleNamespace(device="cpu", generation_config=settings, generate=total)
    assert Generator(tmp_path, fixed).complete([[1, 2, 3], [4], [5, 6]], 3, batch_size) == expected


def test_a_question_is_plain_text_for_a_folder_without_a_chat_template(tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"[UNK]": 0, "Question:": 1, "why?": 2, "Answer:": 3, "because": 4, "<end>": 5}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(tmp_path)
    generator = Generator(tmp_path, None)
    assert generator.prompt("why?") == [1, 2, 3]
    assert generator.answer([4, 5]) == "because"


@pytest.mark.parametrize("device", ["gpuu", "cuda:99"])
def test_a_device_that_is_not_here_is_refused(device):
    with pytest.raises(ConfigError, match=f"device='{device}' is not available"):
        Models("float32", device)
