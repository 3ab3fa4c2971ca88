"""What the verbs do: one module each, named like the verb, whose ``run`` returns the exit code."""
