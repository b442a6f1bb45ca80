"""What every package of ours stands on, and what stands on none of them."""
