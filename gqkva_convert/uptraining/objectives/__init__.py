"""What a student learns: losses, the models that give what they compare, teachers."""
