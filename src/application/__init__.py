"""Use cases that decide something: training, evaluation, benchmarking."""
