"""The hot operations, one folder each: the definition beside its fast forms."""
