"""What a person runs by hand: the self-test, the bench, the score of the counts."""
