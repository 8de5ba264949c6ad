"""What a run looks like afterwards: one self-contained page a run, or one for several side by side."""
