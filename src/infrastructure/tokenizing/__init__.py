"""From the parts of a corpus to token files: encoded by several processes, continued after an interruption, merged."""
