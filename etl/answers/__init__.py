"""Final answers: where a text states one, and whether two of them are equal.

    final.py      the answer that a text states, and how it states it
    clean.py      one spelling for the many of Unicode, Markdown and LaTeX
    plain.py      the verdict, and the pairs that need no algebra
    judge.py      verdicts on any pair, from a process that can be killed
    child.py      that process, which uses reading.py, units.py and compare.py

Steps of etl filter with it and training evaluates with it. Only that process loads math-verify (extra `answers`).
"""
