"""One call of a runtime: its clock and span, how often it is tried and how fast, what it may cost, and its two lines in
the journal, so that an answer that was paid for is never lost."""
