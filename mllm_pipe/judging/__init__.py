"""What `judge` is made of.

By what and by whom is in terms (rubrics, checks, reference). Pure are the questions and how their answers are read
(verdict for scores, pairs for comparisons) and the figures (statistics); asking makes the calls; scoring and comparing
are what one judge finds, panel what several find, judgement what comes of a thread, replay the same from verdicts that
are recorded; ahead has a second process judge too, where nobody is asked; report, calibration and junit show what all
threads come to, and gatekeeping what CI is told.

Text from a model never chooses a field of a record: it is read by code, in a closed form, or it is no verdict.
"""
