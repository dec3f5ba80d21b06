"""What `trace` is made of: which runs are meant, where they come from, sums, handoffs, and the forms they are shown in.

Pure functions on the runs of mllm_pipe.runs, but for the journal's index (index), its upkeep (upkeep) and the sender
of OTLP. Heavy imports (sqlite3, html) are made where they are used.
"""
