"""Decontamination by kind of text: which changed items are found, and which texts are hit that hold none.

    python -m tests.benchmarks.bench_contamination --data FOLDER [--rows 25000]

Items: GSM8K, MATH and MBPP (English), HumanEval as Java, C++, JavaScript and Rust would ask it, written by rules from
the Python, and word problems in Chinese, Japanese, Thai and Korean from the templates below. Each item is on its own or
between words without a space or line feed. Unrelated rows: instructions, prose and documents in Chinese, Japanese,
Korean and English. The last two columns are for the second setting, one rule of 8-grams at 0.3. FOLDER has the public
files that docs/concepts/decontamination.md names. Takes two minutes.
"""

import argparse
import gzip
import json
import os
import random
import re
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from etl.filters.contamination import ContaminationStep
from etl.schema import ID, MESSAGE, VERDICT

NAMES = {
    "zh": ["小明", "小红", "王老师", "李阿姨", "张叔叔"],
    "ja": ["太郎さん", "花子さん", "健さん"],
    "ko": ["민수", "영희", "지수"],
}
THINGS = {
    "zh": ["苹果", "铅笔", "练习本", "气球", "橘子", "邮票", "玻璃球"],
    "ja": ["りんご", "えんぴつ", "シール", "ビー玉", "みかん"],
    "th": ["ส้ม", "ดินสอ", "สมุด", "ลูกโป่ง"],
    "ko": ["사과", "연필", "공책", "풍선"],
}
TEMPLATES = {
    "zh": [
        "{who}有{a}个{what}，又买来{b}个，现在一共有多少个{what}？",
        "{who}把{a}个{what}平均分给{b}个同学，每人分到几个？",
        "一箱{what}重{a}千克，{b}箱这样的{what}重多少千克？",
        "{who}看一本{a}页的书，每天看{b}页，看了{c}天，还剩多少页没看？",
        "一辆汽车{b}小时行驶{a}千米，照这样的速度，{c}小时行驶多少千米？",
        "长方形的长是{a}厘米，宽是{b}厘米，它的面积是多少平方厘米？",
        "商店运来{a}袋大米，每袋{b}元，卖出{c}袋后还有多少袋？",
        "甲数是{a}，乙数比甲数的{b}倍多{c}，求乙数。",
        "修一条长{a}米的路，已经修了{b}天，每天修{c}米，还剩多少米？",
        "求{a}和{b}的最小公倍数与最大公约数的差。",
    ],
    "ja": [
        "{who}は{what}を{a}個持っています。{b}個もらいました。全部で何個ですか。",
        "{a}個の{what}を{b}人で同じ数ずつ分けると、一人分は何個ですか。",
        "1個{a}円の{what}を{b}個買いました。代金はいくらですか。",
        "時速{a}kmで走る車が{b}時間に進む道のりを求めなさい。",
        "たて{a}cm、横{b}cmの長方形の面積は何平方センチメートルですか。",
        "{who}は毎日{a}ページずつ本を読みます。{b}ページの本を読み終えるのに何日かかりますか。",
    ],
    "th": [
        "แม่ค้ามี{what} {a} ผล ขายไป {b} ผล เหลือ{what}กี่ผล",
        "ซื้อ{what} {a} ชิ้น ราคาชิ้นละ {b} บาท ต้องจ่ายเงินทั้งหมดกี่บาท",
        "รถยนต์แล่นด้วยความเร็ว {a} กิโลเมตรต่อชั่วโมง นาน {b} ชั่วโมง จะได้ระยะทางเท่าไร",
        "สี่เหลี่ยมผืนผ้ากว้าง {a} เซนติเมตร ยาว {b} เซนติเมตร มีพื้นที่เท่าไร",
    ],
    "ko": [
        "{who}는 {what} {a}개를 가지고 있습니다. {b}개를 더 받으면 모두 몇 개입니까?",
        "{what} {a}개를 {b}명에게 똑같이 나누어 주면 한 사람이 몇 개씩 받습니까?",
        "시속 {a}km로 달리는 자동차가 {b}시간 동안 간 거리는 얼마입니까?",
        "가로 {a}cm, 세로 {b}cm인 직사각형의 넓이를 구하시오.",
    ],
}  # fmt: skip
AROUND = {
    "zh": [
        ("请回答下面的问题：", "。请一步一步思考。"),
        ("题目", "解答过程如下"),
        ("老师问：“", "”你会做吗"),
        ("", "请写出算式"),
    ],
    "ja": [("次の問題を解いてください：", "途中の式も書くこと"), ("問題", "答え"), ("宿題で「", "」がわかりません")],
    "th": [("โปรดตอบคำถามต่อไปนี้", "ขอบคุณ"), ("โจทย์:", "แสดงวิธีทำ")],
    "ko": [("다음 문제를 풀어 보세요: ", " 풀이도 쓰세요."), ("문제:", " 답:")],
    "en": [("Please answer the following: ", " Think step by step."), ("Question:", " Answer:")],
}
NUMBER = re.compile(r"\d+(?:\.\d+)?")
ADVICE = {"ngrams": [{"n": 8, "min_ratio": 0.3}], "numbers": None, "near": None}
Change = Callable[[random.Random, str, str], str | None]


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


# --- items ---------------------------------------------------------------------------------------------------------


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a packed JSONL file that are JSON."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue


def problems(rng: random.Random, language: str, number: int) -> list[str]:
    """Distinct word problems from templates."""
    found: dict[str, None] = {}
    while len(found) < number:
        fields = {"a": rng.randrange(30, 999), "b": rng.randrange(2, 30), "c": rng.randrange(2, 30)}
        who, what = (rng.choice(words.get(language, [""])) for words in (NAMES, THINGS))
        found[rng.choice(TEMPLATES[language]).format(who=who, what=what, **fields)] = None
    return list(found)


def changed(rng: random.Random, _: str, text: str) -> str | None:
    """With one number changed; None for a text without any."""
    numbers = list(NUMBER.finditer(text))
    if not numbers:
        return None
    old = rng.choice(numbers)
    new = rng.choice([n for n in range(2, 1000) if str(n) != old.group()])
    return f"{text[: old.start()]}{new}{text[old.end() :]}"


def edited(rng: random.Random, _: str, text: str) -> str:
    """With one word in twelve, or one character in twelve of a script without spaces, replaced."""
    words = re.findall(r"[\u0e01-\u0e2e\u3040-\u30ff\u3400-\u9fff]|[^\W\u0e01-\u0e2e\u3040-\u30ff\u3400-\u9fff]+", text)
    plain = [word for word in words if not word.isdecimal()] or words
    for word in rng.sample(words, max(1, len(words) // 12)):
        text = re.sub(re.escape(word), lambda _: rng.choice(plain), text, count=1)
    return text


def wrapped(rng: random.Random, language: str, text: str) -> str:
    """Between other words, with nothing to part them."""
    before, after = rng.choice(AROUND[language])
    return before + text + after


def full_width(rng: random.Random, language: str, text: str) -> str:
    """With full-width signs, decomposed where that makes a difference, and wrapped."""
    wide = "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in text)
    return unicodedata.normalize("NFD", wrapped(rng, language, wide))


def then_wrapped(change: Change) -> Change:
    def both(rng: random.Random, language: str, text: str) -> str | None:
        other = change(rng, language, text)
        return None if other is None else wrapped(rng, language, other)

    return both


TYPES = {"int": "int", "float": "double", "str": "string", "bool": "bool"}
OPENING = {
    "java": "class Solution {{\n    public static {returns} {name}({parameters}) {{",
    "cpp": "#include <bits/stdc++.h>\nusing namespace std;\n{returns} {name}({parameters}) {{",
    "js": "const {name} = ({parameters}) => {{",
    "rs": "fn {name}({parameters}) -> {returns} {{",
}


def translated(rng: random.Random, prompt: str) -> str:
    """A HumanEval prompt as a translation to another language asks it: comment, examples as calls, signature."""
    language = rng.choice(list(OPENING))
    name, parameters = re.findall(r"def (\w+)\((.*?)\)", prompt)[-1]
    own = name if language in ("cpp", "rs") else re.sub(r"_(\w)", lambda found: found.group(1).upper(), name)
    text = re.findall(r'("""|\'\'\')(.*?)\1', prompt, re.DOTALL)[-1][1]
    text = re.sub(rf"\b{name}\b", own, text)
    if language in ("js", "java"):
        text = re.sub(r">>>\s*(.*)\n\s*(.*)", r">>> \1\n    \2", text)
        text = text.replace("True", "true").replace("False", "false").replace("None", "null")
    elif language == "cpp":
        text = re.sub(r"\[(.*?)\]", r"{\1}", text).replace("True", "true").replace("False", "false")
    else:
        text = re.sub(r"\[(.*?)\]", r"vec![\1]", text).replace("True", "true").replace("False", "false")
    comment = "\n".join(
        f"/// {line.strip()}" if language != "java" else f"    // {line.strip()}" for line in text.split("\n")
    )
    names = [part.split(":")[0].split("=")[0].strip() for part in parameters.split(",") if part.strip()]
    fields = {
        "name": own,
        "returns": rng.choice(list(TYPES.values())),
        "parameters": ", ".join(
            names if language == "js" else [f"{rng.choice(list(TYPES.values()))} {n}" for n in names]
        ),
    }
    return f"{comment}\n{OPENING[language].format(**fields)}\n"


def kinds(data: Path, rng: random.Random) -> dict[str, tuple[str, list[str]]]:
    """Name of a kind of text -> language of the text around an item, and the items."""
    maths = [row["problem"] for row in lines(data / "competition_math" / "math_test.jsonl.gz")]
    prompts = [row["prompt"] for row in lines(data / "humaneval" / "HumanEval.jsonl.gz")]
    asked = [row["instruction"] for row in lines(data / "alpaca_zh" / "zh-data-part-00.jsonl.gz")]
    return {
        "English prose (GSM8K)": ("en", [row["question"] for row in lines(data / "gsm8k" / "test.jsonl.gz")]),
        "English formulas (MATH)": ("en", [text for text in maths if len(text.split()) >= 5]),
        "English, short (MBPP)": ("en", [row["text"] for row in lines(data / "mbpp" / "mbpp.jsonl.gz")]),
        "code (HumanEval)": ("en", prompts),
        "Chinese problems": ("zh", problems(rng, "zh", 600)),
        "Chinese instructions": ("zh", [text for text in dict.fromkeys(asked) if 12 <= len(text) <= 80][-1000:]),
        "Japanese problems": ("ja", problems(rng, "ja", 400)),
        "Thai problems": ("th", problems(rng, "th", 300)),
        "Korean problems": ("ko", problems(rng, "ko", 300)),
    }


# --- rows ----------------------------------------------------------------------------------------------------------


def unrelated(data: Path, rng: random.Random, number: int) -> list[tuple[str, str]]:
    """(user, assistant) of rows that hold no item; an empty user for a document."""
    rows = [(row["instruction"], row["output"]) for row in lines(data / "alpaca_zh" / "zh-data-part-00.jsonl.gz")][
        :8000
    ]
    for path in sorted((data / "alpaca_libre").glob("*.jsonl.gz")):
        rows += [(row["instruction"], row["output"]) for row in lines(path) if row.get("output")]
    for path in sorted((data / "wiki_text").glob("*.txt.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows += [("", line) for line in file]
    table = pq.read_table(data / "bench_corpus" / "corpus.parquet", columns=["text", "lang", "source"])
    corpus = [row for row in table.to_pylist() if "gsm8k" not in row["source"]]
    for language in ("zh", "ja", "ko", "en"):
        rows += [("", row["text"]) for row in corpus if row["lang"] == language][:2500]
    rng.shuffle(rows)
    return rows[:number]


def batch_of(rows: list[tuple[str, str]]) -> pa.RecordBatch:
    def message(role: str, content: str) -> dict[str, Any]:
        channel = "final" if role == "assistant" else None
        return {"role": role, "channel": channel, "recipient": None, "content": content}

    messages = [
        [message("user", asked), message("assistant", said)] if asked else [message("text", said)]
        for asked, said in rows
    ]
    ids = [number.to_bytes(16, "big") for number in range(len(rows))]
    arrays = [pa.array(ids, ID), pa.array(messages, pa.list_(MESSAGE)), pa.nulls(len(rows), VERDICT)]
    return pa.record_batch(arrays, ["id", "messages", "verdict"])


# --- table ---------------------------------------------------------------------------------------------------------


class Search:
    """One benchmark under one setting."""

    def __init__(self, folder: Path, items: list[str], settings: dict[str, Any]) -> None:
        path = folder / "items.jsonl"
        path.write_text("".join(json.dumps({"q": item}) + "\n" for item in items), encoding="utf-8")
        fields = {"benchmarks": {"b": {"path": str(path), "question_columns": "q"}}, "action": "tag", "max_hits": 10**6}
        self._run = ContaminationStep.model_validate(fields | settings).open()

    def hits(self, rows: list[tuple[str, str]]) -> list[set[str]]:
        """The items that each row is reported to hold."""
        found = self._run(batch_of(rows)).column("contamination").to_pylist()
        return [{hit["item"] for hit in hits} for hits in found]

    def num_hit(self, rows: list[tuple[str, str]]) -> str:
        """How many rows are hit."""
        return str(sum(map(bool, self.hits(rows))))

    def recall(self, texts: list[str | None]) -> str:
        """Share of the texts in which their own item is found."""
        numbers = [number for number, text in enumerate(texts) if text is not None]
        if not numbers:
            return "–"
        found = self.hits([(texts[number] or "", "yes") for number in numbers])
        share = sum(str(number) in hits for number, hits in zip(numbers, found, strict=True)) / len(numbers)
        return f"{100 * share:.1f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=25_000)
    args = parser.parse_args()
    rng = random.Random(7)
    rows = unrelated(args.data, rng, args.rows)
    changes: dict[str, Change] = {
        "wrapped": wrapped,
        "full-width, NFD": full_width,
        "one number": then_wrapped(changed),
        "1 in 12": then_wrapped(edited),
    }
    asked = f"hits in {len(rows):,}"
    head = ["kind", "items", *changes, "translated", asked, "1 in 12, 8-grams 0.3", "translated", asked]
    say(f"| {' | '.join(head)} |")
    say("|---|" + "---:|" * (len(head) - 1))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["STILLHOUSE_CACHE"] = folder
        for kind, (language, items) in kinds(args.data, rng).items():
            texts = {name: [change(rng, language, item) for item in items] for name, change in changes.items()}
            other_code = [translated(rng, item) if "HumanEval" in kind else None for item in items]
            own = set(items)
            others = [row for row in rows if row[0] not in own]
            default, advice = (Search(Path(folder), items, settings) for settings in ({}, ADVICE))
            cells = [kind, f"{len(items):,}", *map(default.recall, texts.values()), default.recall(other_code)]
            cells += [default.num_hit(others), advice.recall(texts["1 in 12"]), advice.recall(other_code)]
            say(f"| {' | '.join([*cells, advice.num_hit(others)])} |")


if __name__ == "__main__":
    main()
