"""The server: OpenAI's completions API and a page, over one engine."""
