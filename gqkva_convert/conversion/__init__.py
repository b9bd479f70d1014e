"""Plan, execute, check, report."""
