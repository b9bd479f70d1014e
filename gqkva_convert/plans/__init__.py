"""What will happen to the heads, as data: plans, plan files, requests, configurations."""
