"""What people touch: the command line and the report, and the one file that wires the layers together."""
