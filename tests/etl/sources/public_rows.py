"""A row or two in the layout of data sets that many people have, and the shape that each of them is."""

TALK = [{"role": "user", "content": "Why is the sky blue?"}, {"role": "assistant", "content": "Air scatters blue."}]
ASKED, SAID, THOUGHT = "Why is the sky blue today?", "Air scatters blue light more.", "Rayleigh scattering, so blue."
SHAREGPT = [{"from": "human", "value": ASKED}, {"from": "gpt", "value": SAID}]
CODE = "def add(a, b):\n    return a + b"
PAGE = "A long page of text that goes on and on about one thing and another. " * 4
TEST = "assert add(1, 2) == 3"
CALL = '[{"name": "sky", "arguments": {"where": "here"}}]'
TOOLS = '[{"name": "sky", "description": "d", "parameters": {"where": {"type": "str"}}}]'

PUBLIC_ROWS = {
    "dolly": ("columns", {"instruction": ASKED, "context": "", "response": SAID, "category": "open_qa"}),
    "openorca": ("columns", {"id": "flan.1", "system_prompt": "", "question": ASKED, "response": SAID}),
    "metamath": ("columns", {"type": "GSM_AnsAug", "query": "1+1?", "original_question": "1+1?",
        "response": "It is 2."}),
    "ultrachat": ("messages", {"id": "0", "data": [ASKED, SAID, "And red?", "Less so."]}),
    "ultrachat_200k": ("messages", {"prompt": ASKED, "prompt_id": "a", "messages": TALK}),
    "lima": ("messages", {"conversations": [ASKED, SAID], "source": "stackexchange"}),
    "no_robots": ("messages", {"prompt": ASKED, "prompt_id": "a", "messages": TALK, "category": "QA"}),
    "wildchat": ("messages", {"conversation_hash": "h", "model": "gpt-4", "conversation": [
        {**TALK[0], "language": "English", "redacted": False}, {**TALK[1], "language": "English", "redacted": False}],
        "turn": 1, "language": "English", "toxic": False}),
    "lmsys": ("messages", {"conversation_id": "a", "model": "vicuna", "conversation": TALK, "turn": 1}),
    "tulu": ("messages", {"dataset": "flan_v2", "id": "flan_1", "messages": TALK}),
    "capybara": ("pairs", {"source": "Airoboros", "conversation": [{"input": ASKED, "output": SAID}]}),
    "slimorca": ("messages", {"conversations": [{**message, "weight": 1.0} for message in SHAREGPT]}),
    "evol_instruct": ("columns", {"instruction": ASKED, "output": SAID}),
    "code_feedback": ("columns", {"query": "Add two numbers.", "answer": f"```python\n{CODE}\n```", "lang": "python"}),
    "code_feedback_turns": ("messages", {"id": 1, "messages": TALK}),
    "apps": ("verifiable", {"problem_id": 0, "question": ASKED, "solutions": '["print(1)"]',
        "input_output": '{"inputs": ["1"], "outputs": ["1"]}', "difficulty": "interview", "url": "u",
        "starter_code": ""}),
    "mbpp": ("verifiable", {"task_id": 1, "text": "Write add.", "code": CODE, "test_list": [TEST],
        "test_setup_code": "", "challenge_test_list": []}),
    "humaneval": ("verifiable", {"task_id": "HumanEval/0", "prompt": "def add(a, b):\n", "canonical_solution": CODE,
        "test": TEST, "entry_point": "add"}),
    "gsm8k": ("columns", {"question": "How many are 1 and 1?", "answer": "1 and 1 is <<1+1=2>>2.\n#### 2"}),
    "squad": ("columns", {"id": "a", "title": "Sky", "context": PAGE, "question": ASKED,
        "answers": {"text": ["Air scatters blue"], "answer_start": [0]}}),
    "hh_rlhf": ("preference", {"chosen": f"\n\nHuman: {ASKED}\n\nAssistant: {SAID}",
        "rejected": f"\n\nHuman: {ASKED}\n\nAssistant: No."}),
    "shp": ("prompts", {"post_id": "a", "history": ASKED, "human_ref_A": SAID, "human_ref_B": "No.", "labels": 1}),
    "helpsteer": ("columns", {"prompt": ASKED, "response": SAID, "helpfulness": 4, "correctness": 4}),
    "oasst_flat": ("text", {"message_id": "a", "parent_id": None, "text": PAGE, "role": "prompter", "lang": "en"}),
    "orca_dpo": ("preference", {"system": "", "question": ASKED, "chosen": SAID, "rejected": "No."}),
    "nectar": ("columns", {"prompt": ASKED, "answers": [{"answer": SAID, "model": "m", "rank": 1.0}], "turns": 1}),
    "prm800k": ("verifiable", {"question": {"problem": "1+1?", "ground_truth_answer": "2"}, "label": {"steps": []}}),
    "openmathinstruct": ("verifiable", {"problem": "1+1?", "generated_solution": "It is 2.", "expected_answer": "2",
        "problem_source": "math"}),
    "numina": ("messages", {"source": "cn_k12", "problem": "1+1?", "solution": SAID, "messages": TALK}),
    "s1k": ("columns", {"question": ASKED, "solution": SAID, "cot_type": "math", "thinking_trajectories": [THOUGHT],
        "attempt": SAID}),
    "openthoughts": ("messages", {"system": "Think.", "conversations": [{"from": "user", "value": ASKED}, {
        "from": "assistant", "value": f"<|begin_of_thought|>{THOUGHT}<|end_of_thought|>\n{SAID}"}]}),
    "toolace": ("messages", {"system": "Tools: []", "conversations": [{"from": "user", "value": ASKED},
        {"from": "assistant", "value": '[sky(where="here")]'}, {"from": "tool", "value": "blue"},
        {"from": "assistant", "value": SAID}]}),
    "xlam": ("columns", {"id": 0, "query": ASKED, "tools": TOOLS, "answers": CALL}),
    "glaive": ("transcript", {"system": "SYSTEM: You are a helpful assistant.", "chat": f"USER: {ASKED}\n\n\n"
        "ASSISTANT: <functioncall> {\"name\": \"sky\", \"arguments\": '{\"where\": \"here\"}'} <|endoftext|>\n\n\n"
        f"FUNCTION RESPONSE: {{\"colour\": \"blue\"}}\n\n\nASSISTANT: {SAID} <|endoftext|>\n\n\n"}),
    "bespoke_stratos": ("messages", {"system": "Think.", "conversations": [{"from": "user", "value": ASKED}, {
        "from": "assistant", "value": f"<|begin_of_thought|>\n\n{THOUGHT}\n\n<|end_of_thought|>\n\n"
        f"<|begin_of_solution|>\n\n{SAID}\n\n<|end_of_solution|>"}]}),
    "fineweb": ("text", {"text": PAGE, "id": "<urn:uuid:1>", "dump": "CC", "url": "http://a", "language": "en"}),
    "starcoder": ("text", {"max_stars_repo_path": "a.py", "max_stars_count": 1, "id": "0", "content": CODE * 3}),
    "wikipedia": ("text", {"id": "1", "url": "http://a", "title": "Sky", "text": PAGE}),
    "belle": ("columns", {"instruction": "天空为什么是蓝色的？", "input": "", "output": "因为散射。"}),
    "firefly": ("columns", {"kind": "QA", "input": "天空为什么是蓝色的？", "target": "因为散射。"}),
    "moss_history": ("pairs", {"instruction": ASKED, "input": "", "output": SAID, "history": [["Hi", "Hello"]]}),
    "chinese": ("columns", {"编号": 1, "问题": "天空为什么是蓝色的？", "思考过程": "瑞利散射。", "回答": "因为散射。"}),
    "guanaco": ("transcript", {"text": f"### Human: {ASKED}### Assistant: {SAID}"}),
    "llama2": ("transcript", {"text": f"<s>[INST] {ASKED} [/INST] {SAID} </s>"}),
    "chatml": ("transcript", {"text": f"<|im_start|>user\n{ASKED}<|im_end|>\n"
        f"<|im_start|>assistant\n{SAID}<|im_end|>\n"}),
    "alpaca_text": ("transcript", {"text": "Below is an instruction that describes a task. Write a response.\n\n"
        f"### Instruction:\n{ASKED}\n\n### Response:\n{SAID}"}),
    "ultrafeedback": ("preference", {"source": "evol", "instruction": ASKED, "models": ["a", "b"], "completions": [
        {"response": SAID, "overall_score": 8.5}, {"response": "No.", "overall_score": 2.0}]}),
    "kto": ("preference", {"prompt": [TALK[0]], "completion": [TALK[1]], "label": True}),
    "dpo_messages": ("preference", {"prompt": ASKED, "chosen": TALK, "rejected": [
        TALK[0], {**TALK[1], "content": "No."}]}),
    "stack_paired": ("preference", {"qid": 1, "question": ASKED, "response_j": SAID, "response_k": "No."}),
    "medical_o1": ("columns", {"Question": ASKED, "Complex_CoT": THOUGHT, "Response": SAID}),
    "p3": ("columns", {"inputs": ASKED, "targets": SAID}),
    "natural_instructions": ("columns", {"definition": "d", "inputs": ASKED, "targets": SAID}),
    "openr1": ("verifiable", {"problem": "1+1?", "solution": SAID, "answer": "2",
        "generations": [f"<think>{THOUGHT}</think>{SAID}"]}),
    "am_deepseek": ("messages", {"messages": [
        TALK[0], {"role": "assistant", "content": f"<think>{THOUGHT}</think>{SAID}"}]}),
    "nested": ("columns", {"data": {"prompt": ASKED, "response": SAID}, "meta": {"id": 1}}),
    "big_math": ("verifiable", {"problem": "1+1?", "answer": "2", "source": "orca", "llama8b_solve_rate": 0.5}),
    "rl_parquet": ("verifiable", {"data_source": "gsm8k", "prompt": [TALK[0]], "ability": "math",
        "reward_model": {"ground_truth": "2", "style": "rule"}, "extra_info": {"index": 0, "split": "train"}}),
    "cnn": ("columns", {"id": "a", "article": PAGE, "highlights": SAID}),
    "synth": ("columns", {"synth_id": "a", "query": ASKED, "synthetic_reasoning": THOUGHT, "synthetic_answer": SAID}),
    "chat_history": ("pairs", {"conversation_history": TALK, "query": "And red?", "response": "Less so."}),
    "thinking_column": ("columns", {"user_prompt": ASKED, "thinking": THOUGHT, "model_response": SAID}),
}  # fmt: skip
