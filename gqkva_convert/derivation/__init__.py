"""Tables made from stock classes, and their proof on a tiny model of the user's own configuration."""
