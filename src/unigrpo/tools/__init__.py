"""What no run needs. planning: the costs of a dry run · paper: reproduce · parity: the original code's numbers."""
