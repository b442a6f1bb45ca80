"""What a person runs by hand: the self-test and the bench."""
