"""What data sets call their columns, in the words that etl/sources/nearest.py knows.

Names are compared without case, spaces, `_` and `-`, and otherwise to the letter; the order is the order of
preference. A name alone proves nothing: the description that it leads to is tried on rows.
"""

import re
from typing import Final

QUESTIONS: Final = (
    "instruction", "question", "query", "prompt", "problem", "userprompt", "userquery", "userinput", "userquestion",
    "usermessage", "instructions", "originalquestion", "questiontext", "questioncontent", "problemstatement",
    "problemdescription", "problemtext", "inputtext", "inputs", "input", "user", "human", "request", "task",
    "taskdescription", "ask", "q", "instruct", "message", "utterance", "source", "post", "dialogue", "article",
    "document", "history", "text", "docstring", "funcdocumentationstring", "description", "title", "body",
    "问题", "指令", "提问", "提示", "提示词", "题目", "用户", "用户输入", "请求", "任务", "输入",
    "指示", "问", "问句", "提示语", "用户提问", "用户问题", "問題", "指示文", "入力", "質問",
)  # fmt: skip
"""Columns of what the user says."""
CONTEXTS: Final = (
    "input", "inputs", "context", "contexts", "passage", "document", "article", "background", "knowledge", "evidence",
    "startercode", "inputtext", "choices", "options", "body",
    "输入", "上下文", "背景", "材料", "文章", "补充", "选项", "入力", "文脈",
)  # fmt: skip
"""Columns of what a question is about, behind it in the prompt."""
ANSWERS: Final = (
    "output", "response", "answer", "completion", "outputs", "targets", "target", "assistant", "reply", "solution",
    "canonicalsolution", "generatedsolution", "generation", "finalanswer", "final", "bestanswer", "modelanswer",
    "modeloutput", "modelresponse", "assistantresponse", "gptresponse", "gptanswer", "chatgptanswer", "gpt4response",
    "generatedtext", "generated", "outputtext", "responsetext", "answertext", "bot", "gpt", "syntheticanswer", "code",
    "sql", "attempt", "result", "gold", "goldanswer", "reference", "referenceanswer", "longanswer", "rewritten",
    "summary", "highlights", "translation", "a", "responses", "answers", "solutions", "generations",
    "completions", "回答", "答案", "输出", "回复", "答复", "解答", "助手", "参考答案", "答", "答句", "应答",
    "模型回答", "标准回答", "最佳答案", "funccodestring", "出力", "応答", "解析",
)  # fmt: skip
"""Columns of what the assistant answers."""
WEAK_QUESTIONS: Final = frozenset({
    "source", "text", "document", "article", "description", "docstring", "message",
    "funcdocumentationstring", "title", "body", "task", "user", "human", "q",
})  # fmt: skip
"""Of the questions, those that ask nothing where there is no answer."""
SOLUTIONS: Final = (
    "solution", "canonicalsolution", "generatedsolution", "generation", "response", "output", "completion", "code",
    "gtcot", "solutions", "generations", "rationale", "答案解析", "解析", "解答",
)  # fmt: skip
"""Of these, those of a worked solution beside a right answer or tests."""
CHECKED: Final = (
    "expectedanswer", "expectedverification", "groundtruth", "gt", "groundtruthanswer", "correctanswer", "goldanswer",
    "referenceanswer", "finalanswer", "gold", "answer", "answerkey", "label", "expectedoutput", "target", "答案",
    "参考答案", "标准答案",
)  # fmt: skip
"""Columns of the right answer to what can be checked."""
CHECKED_QUESTIONS: Final = ("verificationquestion",)
"""Questions that only verifiable items have."""
TESTS: Final = (
    "tests", "testcases", "testlist", "test", "testcode", "unittests", "publictests", "privatetests", "inputoutput",
    "verificationinfo", "assertions", "checks", "测试", "测试用例",
)  # fmt: skip
"""Columns of tests."""
REASONING: Final = (
    "reasoning", "reasoningcontent", "thinking", "thought", "thoughts", "cot", "chainofthought", "think", "rationale",
    "analysis", "syntheticreasoning", "reasoningtrace", "deepseekreasoning", "deepseekthinkingtrajectory",
    "thinkingtrajectories", "thinkingtrajectory", "reasoningchain", "complexcot", "explanation",
    "思考", "推理", "推理过程", "思考过程", "思维链",
)  # fmt: skip
"""Columns of reasoning before the answer."""
SYSTEMS: Final = (
    "system",
    "systemprompt",
    "systemmessage",
    "systeminstruction",
    "sysprompt",
    "系统",
    "系统提示",
    "系统提示词",
)
"""Columns of instructions."""
TALKS: Final = (
    "conversations", "conversation", "data", "dialog", "dialogue", "dialogs", "turns", "messages", "chat", "utterances",
    "对话", "会话",
)  # fmt: skip
"""Columns of lists of texts, of which every other one is the assistant's."""
HISTORIES: Final = ("history", "conversationhistory", "chathistory", "dialoguehistory", "历史", "对话历史")
"""Columns of earlier exchanges."""
CHOSEN: Final = (
    ("chosen", "rejected"), ("chosenresponse", "rejectedresponse"), ("preferred", "dispreferred"),
    ("preferred", "rejected"), ("accepted", "rejected"), ("positive", "negative"), ("win", "lose"),
    ("winner", "loser"), ("responsej", "responsek"), ("better", "worse"), ("betterresponse", "worseresponse"),
    ("chosenanswer", "rejectedanswer"), ("优选", "劣选"),
    ("好回答", "坏回答"), ("偏好回答", "拒绝回答"), ("接受", "拒绝"), ("更好", "更差"),
    ("正例", "负例"),
)  # fmt: skip
"""Columns of the better and of the other answer."""
RESPONSES: Final = ("responses", "completions", "answers", "candidates", "generations", "outputs", "回答列表", "候选")
"""Columns of lists of answers."""
REWARDS: Final = (
    "rewards", "scores", "reward", "score", "rewardsarmorm", "ratings", "rating", "overallscore", "finegrainedscore",
    "评分", "分数", "得分", "奖励",
)  # fmt: skip
"""Columns of their rewards, or keys of these in the answers."""
LABELS: Final = ("label", "labels", "isgood", "desirable", "isdesirable", "thumbsup", "标签")
"""Columns that judge one answer."""
TEXTS: Final = (
    "text", "content", "rawcontent", "document", "body", "article", "contents", "markdown", "passage", "code", "story",
    "rawtext", "fulltext", "page", "文本", "内容", "正文", "原文",
)  # fmt: skip
"""Columns of raw documents."""
TOOLS: Final = ("tools", "functions", "function", "availabletools", "toolschema", "apis", "工具")
"""Columns of the definitions of tools."""
IDS: Final = (
    "id",
    "uuid",
    "guid",
    "exampleid",
    "rowid",
    "sampleid",
    "uid",
    "key",
    "idx",
    "index",
    "qid",
    "编号",
    "序号",
)
"""Columns of a row's name, beside all whose name ends in `id`."""
OTHER_IDS: Final = ("userid", "authorid", "parentid", "modelid", "workerid", "annotatorid", "messagetreeid", "topicid")
"""Columns that name something else than the row."""
LICENSES: Final = ("license", "licence", "licenses", "licensetype", "licensename", "seedlicense", "许可证", "许可")
LANGUAGES: Final = ("language", "lang", "locale", "languagecode", "langcode", "bcp47", "语言", "语种")
SUBSETS: Final = (
    "subset",
    "source",
    "dataset",
    "datasource",
    "sourcedataset",
    "datasetname",
    "origin",
    "来源",
    "数据集",
)
CODE: Final = frozenset({"code", "canonicalsolution", "testlist", "entrypoint", "startercode", "sql", "unittests"})
"""Names that say that a row is of code."""
MATHS: Final = frozenset({"problem", "gtcot", "expectedanswer", "groundtruthanswer", "generatedsolution"})
"""Names that say that a row is of mathematics, beside values in LaTeX."""
LANGUAGE_CODE: Final = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z]{2,4})?")
LANGUAGE_WORDS: Final = frozenset({
    "english", "chinese", "german", "french", "spanish", "russian", "japanese", "korean", "italian", "portuguese",
    "arabic", "hindi", "dutch", "polish", "turkish", "vietnamese", "中文", "英文", "英语", "汉语",
})  # fmt: skip
"""Names of languages that people speak; `python` is none."""
LAST_WORDS: Final = frozenset({
    "instruction", "question", "query", "prompt", "problem", "request", "output", "response", "answer", "completion",
    "reply", "solution", "reasoning", "thinking", "thought", "cot", "rationale", "reward", "rewards", "scores", "tests",
    "history", "chosen", "rejected",
})  # fmt: skip
"""Words that say what a column is where its name ends in them, such as `gpt4_response`."""
_WORD: Final = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")
_NUMBERED: Final = re.compile(r"(.*?\D)_?(\d{1,2})")
_SIGNS: Final = re.compile(r"[\s_\-]+")


def last_word(name: str) -> str | None:
    """The last word of a name of several, where it is one of LAST_WORDS."""
    words = _WORD.findall(name)
    return words[-1].lower() if len(words) > 1 and words[-1].lower() in LAST_WORDS else None


def numbered(name: str) -> tuple[str, int] | None:
    """A name and the number at its end, as in `question_2`; None where there is none."""
    found = _NUMBERED.fullmatch(name)
    return None if found is None else (bare(found[1]), int(found[2]))


def bare(name: str) -> str:
    """A name without case, spaces, `_` and `-`."""
    return _SIGNS.sub("", name).lower()
