"""What a model costs, from its sizes alone: for the dry run, and for the FLOPs that a run says it did."""
