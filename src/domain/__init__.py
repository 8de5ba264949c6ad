"""What a GPT is and computes: no files, no device choice, no third party but torch and pydantic."""
