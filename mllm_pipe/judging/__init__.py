"""What `judge` is made of: by what and by whom (terms, rubrics, checks, reference), the question and how its answer is
read (verdict), the calls (asking), and the judgement of a thread (judgement).

Text from a model never chooses a field of a record: it is read by code, in a closed form, or it is no verdict.
"""
