"""mllm-pipe: work with several LLMs at once, from the shell."""

__version__ = "0.1.0"
