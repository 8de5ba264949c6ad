"""Models as other tools keep them: one file a format, each with `read`, `write` and `reader`."""
